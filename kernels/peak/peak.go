// Package peak measures how many multiply-adds the cores do when nothing but the units
// that do them is in the way: the roof that benchmarks of kernels are compared with. It is
// measured beside them, with as many threads, as clock rates differ by the load and the
// neighbours, and two threads may share the units of one core.
package peak

import (
	"slices"
	"sync"
	"time"
)

// FMA is the rate in FLOP/s (a multiply-add counts two) of a tier of kernels.Tiers in so
// many threads together, the best of some short runs, or 0 when the tier has no vector
// instructions.
func FMA(tier string, threads int) float64 {
	best := 0.0
	for range 9 {
		best = max(best, once(tier, threads))
	}
	return best
}

// Share is the median of the rate of run, which does so many FLOP, over the roof measured
// right before and after, in an odd number of trials: a neighbour who takes half of a core
// for a while slows down both. best is the highest rate in FLOP/s of any trial.
func Share(tier string, threads, trials int, flop float64, run func()) (share, best float64) {
	var shares []float64
	before := once(tier, threads)
	for range trials {
		at := time.Now()
		run()
		rate := flop / time.Since(at).Seconds()
		after := once(tier, threads)
		best = max(best, rate)
		if before+after > 0 {
			shares = append(shares, 2*rate/(before+after))
		}
		before = after
	}
	if len(shares) == 0 {
		return 0, best
	}
	slices.Sort(shares)
	return shares[len(shares)/2], best
}

// Loop is one short run of the multiply-adds in so many threads, with the FLOP it does; nil
// when the tier has no vector instructions.
func Loop(tier string, threads int) (run func(), flop float64) {
	one, lanes := loop(tier)
	if one == nil {
		return nil, 0
	}
	const rounds = 1 << 19 // about a millisecond: waking a thread must not count
	return func() {
		var wg sync.WaitGroup
		for range threads - 1 {
			wg.Go(func() { one(rounds) })
		}
		one(rounds)
		wg.Wait()
	}, float64(threads) * float64(2*14*lanes*rounds)
}

// once is the rate of one short run.
func once(tier string, threads int) float64 {
	run, flop := Loop(tier, threads)
	if run == nil {
		return 0
	}
	at := time.Now()
	run()
	return flop / time.Since(at).Seconds()
}
