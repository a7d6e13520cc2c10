//go:build !purego

package kernels

// assembly: this build has the kernels of the amd64 tiers.
const assembly = true
