//go:build race

package main

// The race detector's own memory is not the program's.
func init() { memoryFactor = 8 }
