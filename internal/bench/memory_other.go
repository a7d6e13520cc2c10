//go:build !linux

package main

// memory is not measured on this system.
type memory struct{ private, highest int64 }

func watch(_ int, stop <-chan struct{}, peak chan<- memory) {
	<-stop
	peak <- memory{}
}
