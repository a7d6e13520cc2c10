//go:build !amd64 || purego

package panel

var avx2, avx512 *Kernel // none in this build
