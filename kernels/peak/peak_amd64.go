//go:build !purego

package peak

//go:generate go -C ../_asm run ./peak -out ../peak/peak_amd64.s -stubs ../peak/stubs_amd64.go -pkg peak

func loop(tier string) (run func(int), lanes int) {
	switch tier {
	case "avx2":
		return fmaAVX2, 8
	case "avx512":
		return fmaAVX512, 16
	}
	return nil, 0
}
