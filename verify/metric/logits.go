package metric

import "math"

// Top is how many of the likeliest tokens are compared as a set.
const Top = 5

// A Token is what is measured of one scored token: the prediction after some text, where P
// is the distribution of the base and Q that of the candidate, and t the token that follows.
type Token struct {
	// KLD is sum over the whole vocabulary of P(v) (ln P(v) - ln Q(v)), in float64 from
	// float32 logits.
	KLD float64
	// Base and Candidate are -ln P(t) and -ln Q(t).
	Base, Candidate float64
	// Same1 is 1 where the likeliest token is the same, the first one on a tie; else 0.
	Same1 float64
	// Same5 is the share of the base's Top likeliest tokens that are among the candidate's.
	Same5 float64
}

// Compare measures a token from the logits of base and candidate, of one length. next is the
// token that follows, -1 if there is none: Base and Candidate are then 0 and not to be used.
// Logits that are not finite give a KLD that is not a number.
func Compare(base, candidate []float32, next int) Token {
	var p Partial
	p.Add(0, base, candidate, next)
	return p.Token()
}

// Logits are the statistics of scored tokens. The zero value is empty.
type Logits struct {
	KLD        Moments
	KLDs       Distribution
	Same1      Moments
	Same5      Moments
	Base       Moments // -ln P(t); only of tokens with a token that follows, as all below
	Candidate  Moments
	Difference Moments // ln P(t) - ln Q(t), paired
	DeltaP     Moments // Q(t) - P(t)
	DeltaP2    Moments // (Q(t) - P(t))^2
}

// Add takes a token; followed tells that it has one that follows.
func (l *Logits) Add(t Token, followed bool) {
	l.KLD.Add(t.KLD)
	l.KLDs.Add(t.KLD)
	l.Same1.Add(t.Same1)
	l.Same5.Add(t.Same5)
	if !followed {
		return
	}
	l.Base.Add(t.Base)
	l.Candidate.Add(t.Candidate)
	l.Difference.Add(t.Candidate - t.Base)
	d := math.Exp(-t.Candidate) - math.Exp(-t.Base)
	l.DeltaP.Add(d)
	l.DeltaP2.Add(d * d)
}

// Merge takes the tokens of another part.
func (l *Logits) Merge(o *Logits) {
	l.KLD.Merge(o.KLD)
	l.KLDs.Merge(&o.KLDs)
	l.Same1.Merge(o.Same1)
	l.Same5.Merge(o.Same5)
	l.Base.Merge(o.Base)
	l.Candidate.Merge(o.Candidate)
	l.Difference.Merge(o.Difference)
	l.DeltaP.Merge(o.DeltaP)
	l.DeltaP2.Merge(o.DeltaP2)
}

// PerplexityBase is exp(mean -ln P(t)).
func (l *Logits) PerplexityBase() Estimate { return l.Base.Estimate().Exp() }

// PerplexityCandidate is exp(mean -ln Q(t)).
func (l *Logits) PerplexityCandidate() Estimate { return l.Candidate.Estimate().Exp() }

// PerplexityRatio is the candidate's perplexity by the base's, exp(mean (ln P(t) - ln Q(t))):
// the error is that of the paired differences, far smaller than those of the two.
func (l *Logits) PerplexityRatio() Estimate { return l.Difference.Estimate().Exp() }

// RMSDeltaP is sqrt(mean (Q(t) - P(t))^2).
func (l *Logits) RMSDeltaP() Estimate { return l.DeltaP2.Estimate().Sqrt() }
