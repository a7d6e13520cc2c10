//go:build !purego

package flash

import "github.com/nf4conv/nf4conv/kernels/panel"

//go:generate go -C ../_asm run ./flash -out ../flash/flash_amd64.s -stubs ../flash/stubs_amd64.go -pkg flash

var tiers = map[string]*assembly{
	"avx2": {
		softmax: [panel.MaxVecs + 1]softmaxFunc{nil, softmax1xAVX2, softmax2xAVX2, softmax3xAVX2},
		bias:    [panel.MaxVecs + 1]biasFunc{nil, bias1xAVX2, bias2xAVX2, bias3xAVX2},
		softcap: softcapAVX2,
	},
	"avx512": {
		softmax: [panel.MaxVecs + 1]softmaxFunc{nil, softmax1xAVX512, softmax2xAVX512, softmax3xAVX512},
		bias:    [panel.MaxVecs + 1]biasFunc{nil, bias1xAVX512, bias2xAVX512, bias3xAVX512},
		softcap: softcapAVX512,
	},
}
