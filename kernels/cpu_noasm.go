//go:build !amd64 || purego

package kernels

// assembly: this build has generic Go only.
const assembly = false
