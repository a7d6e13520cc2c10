//go:build !amd64 || purego

package flash

var tiers map[string]*assembly // none in this build
