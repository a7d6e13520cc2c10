//go:build !purego

package panel

//go:generate go -C ../_asm run ./panel -out ../panel/panel_amd64.s -stubs ../panel/stubs_amd64.go -pkg panel

var avx2 = &Kernel{
	Tier: "avx2", Rows: 4, Lanes: 8,
	mul:       [MaxVecs + 1]mulFunc{nil, mul1xAVX2, mul2xAVX2, mul3xAVX2},
	transpose: transposeAVX2,
}

var avx512 = &Kernel{
	Tier: "avx512", Rows: 8, Lanes: 16,
	mul:       [MaxVecs + 1]mulFunc{nil, mul1xAVX512, mul2xAVX512, mul3xAVX512},
	transpose: transposeAVX512,
}
