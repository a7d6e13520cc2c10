//go:build !amd64 || purego

package vexp

import "math"

func gateGroups(_ []float32, _, _ float64) int { return 0 }

func divergenceGroups(_ *partial, _, _ []float32, _, _ float64) int { return 0 }

func maxGroups(_ []float32) (float32, int) { return float32(math.Inf(-1)), 0 }
