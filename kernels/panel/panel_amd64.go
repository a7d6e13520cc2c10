//go:build !purego

package panel

//go:generate go -C ../_asm run ./panel -out ../panel/panel_amd64.s -stubs ../panel/stubs_amd64.go -pkg panel

var avx2 = &Kernel{
	Tier: "avx2", Rows: 4, Lanes: 8,
	mul: [MaxVecs + 1]mulFunc{nil, mul1xAVX2, mul2xAVX2, mul3xAVX2},
	few: [formats][MaxFew + 1]fewFunc{
		{nil, few1AVX2, few2AVX2, nil, few4AVX2},
		{nil, fewBF161AVX2, fewBF162AVX2, nil, fewBF164AVX2},
		{nil, fewQuant41AVX2, fewQuant42AVX2, nil, fewQuant44AVX2},
	},
	transpose: transposeAVX2,
}

var avx512 = &Kernel{
	Tier: "avx512", Rows: 8, Lanes: 16,
	mul: [MaxVecs + 1]mulFunc{nil, mul1xAVX512, mul2xAVX512, mul3xAVX512},
	few: [formats][MaxFew + 1]fewFunc{
		{nil, few1AVX512, few2AVX512, nil, few4AVX512},
		{nil, fewBF161AVX512, fewBF162AVX512, nil, fewBF164AVX512},
		{nil, fewQuant41AVX512, fewQuant42AVX512, nil, fewQuant44AVX512},
	},
	transpose: transposeAVX512,
}
