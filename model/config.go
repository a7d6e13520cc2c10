package model

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/internal/fault"
)

// config reads options of config.json. The first error is kept and every later answer is
// a zero value, so that a description is written without an if for each option.
type config struct {
	tree map[string]any
	err  error
}

// newConfig takes the text model of a composite configuration.
func newConfig(c *hf.Config) *config {
	tree := c.Map()
	if sub, ok := tree["text_config"].(map[string]any); ok {
		merged := map[string]any{}
		for k, v := range sub {
			merged[k] = v
		}
		// The head belongs to the whole; Llava's is tied, too, when the text model says so.
		if tied, ok := tree["tie_word_embeddings"].(bool); ok {
			inner, _ := merged["tie_word_embeddings"].(bool)
			merged["tie_word_embeddings"] = tied || inner && strings.Contains(c.ModelType(), "llava")
		}
		tree = merged
	}
	return &config{tree: tree}
}

func (c *config) fail(format string, a ...any) {
	if c.err == nil {
		c.err = fault.Inputf("config.json: %w", fmt.Errorf(format, a...))
	}
}

// get is the value of the first of the keys that has one. JSON null counts as none.
func (c *config) get(keys ...string) (any, bool) {
	for _, k := range keys {
		if v, ok := c.tree[k]; ok && v != nil {
			return v, true
		}
	}
	return nil, false
}

// said tells whether the key is there, be it null.
func (c *config) said(key string) bool { _, ok := c.tree[key]; return ok }

func asFloat(v any) (float64, bool) {
	switch n := v.(type) {
	case json.Number:
		f, err := n.Float64()
		return f, err == nil
	case float64:
		return n, true
	}
	return 0, false
}

func (c *config) floatOr(def float64, keys ...string) float64 {
	v, ok := c.get(keys...)
	if !ok {
		return def
	}
	f, ok := asFloat(v)
	if !ok {
		c.fail("%s: expected a number, found %v", keys[0], v)
	}
	return f
}

func (c *config) intOr(def int, keys ...string) int {
	f := c.floatOr(float64(def), keys...)
	if f != float64(int(f)) || f < -1<<40 || f > 1<<40 {
		c.fail("%s: expected an integer, found %v", keys[0], f)
		return 0
	}
	return int(f)
}

// size is a required positive integer.
func (c *config) size(keys ...string) int {
	v, ok := c.get(keys...)
	if !ok {
		c.fail("%s is missing", keys[0])
		return 1
	}
	n := c.intOr(0, keys...)
	if n < 1 || n > 1<<24 {
		c.fail("%s: expected an integer from 1 to %d, found %v", keys[0], 1<<24, v)
		return 1
	}
	return n
}

// count is a required positive integer of parts that are described one by one.
func (c *config) count(keys ...string) int {
	const most = 1 << 12
	n := c.size(keys...)
	if n > most {
		c.fail("%s: expected at most %d, found %d", keys[0], most, n)
		return 1
	}
	return n
}

// heads is a number of attention heads.
func (c *config) heads(keys ...string) int {
	const most = 1 << 10
	n := c.count(keys...)
	if n > most {
		c.fail("%s: expected at most %d, found %d", keys[0], most, n)
		return 1
	}
	return n
}

// positiveOr is a factor that is greater than zero.
func (c *config) positiveOr(def float64, keys ...string) float32 {
	f := c.floatOr(def, keys...)
	if !(f > 0) || math.IsInf(f, 0) {
		c.fail("%s: expected a positive number, found %v", keys[0], f)
		return 1
	}
	return float32(f)
}

func (c *config) boolOr(def bool, keys ...string) bool {
	v, ok := c.get(keys...)
	if !ok {
		return def
	}
	b, ok := v.(bool)
	if !ok {
		c.fail("%s: expected true or false, found %v", keys[0], v)
	}
	return b
}

func (c *config) textOr(def string, keys ...string) string {
	v, ok := c.get(keys...)
	if !ok {
		return def
	}
	s, ok := v.(string)
	if !ok {
		c.fail("%s: expected a text, found %v", keys[0], v)
	}
	return s
}

func (c *config) texts(key string) []string {
	v, ok := c.get(key)
	if !ok {
		return nil
	}
	list, ok := v.([]any)
	out := make([]string, len(list))
	for i, x := range list {
		s, isText := x.(string)
		ok = ok && isText
		out[i] = s
	}
	if !ok {
		c.fail("%s: expected a list of texts, found %v", key, v)
	}
	return out
}

func (c *config) ints(key string) []int {
	v, ok := c.get(key)
	if !ok {
		return nil
	}
	list, ok := v.([]any)
	out := make([]int, len(list))
	for i, x := range list {
		f, isNumber := asFloat(x)
		ok = ok && isNumber && f == float64(int(f))
		out[i] = int(f)
	}
	if !ok {
		c.fail("%s: expected a list of integers, found %v", key, v)
	}
	return out
}

func (c *config) activation(def string, keys ...string) Activation {
	name := c.textOr(def, keys...)
	a, err := activationOf(name)
	if err != nil {
		c.fail("%s: %w", keys[0], err)
	}
	return a
}

// only refuses an option unless it is absent, null or one of the values.
func (c *config) only(key string, values ...any) {
	v, ok := c.get(key)
	if !ok {
		return
	}
	if f, isNumber := asFloat(v); isNumber {
		v = f
	}
	if !slices.Contains(values, v) {
		c.fail("%s %v is not implemented", key, v)
	}
}

// off refuses options that are true.
func (c *config) off(keys ...string) {
	for _, k := range keys {
		c.only(k, false)
	}
}

// ropeKeys are the rope parameters that are understood.
var ropeKeys = []string{
	"rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "original_max_position_embeddings", "attention_factor",
	"beta_fast", "beta_slow", "short_factor", "long_factor", "low_freq_factor", "high_freq_factor", "mscale", "mscale_all_dim",
	"truncate", "finetuned", "short_mscale", "long_mscale",
}

// ropeDefaults are what an architecture takes for what its configuration does not say.
type ropeDefaults struct {
	theta      float64
	partial    float64 // part of a head that is rotated; 0: the architecture rotates heads whole
	thetaKey   string  // of transformers 4: rope_theta when empty
	partialKey string  // partial_rotary_factor when empty
	noScaling  bool    // rope_scaling of transformers 4 does not count
	sections   bool    // frequencies are dealt out to axes of an image; for text these are one
}

// rope reads the rotary embedding of heads of headDim elements. layerType chooses among
// parameters per type of layer ("full_attention", "sliding_attention").
func (c *config) rope(headDim int, layerType string, d ropeDefaults) *Rope {
	if d.thetaKey == "" {
		d.thetaKey = "rope_theta"
	}
	if d.partialKey == "" {
		d.partialKey = "partial_rotary_factor"
	}
	p := &config{tree: c.ropeParameters(layerType, d.noScaling)}
	for k, v := range p.tree {
		if !slices.Contains(ropeKeys, k) && v != nil && (!d.sections || !strings.HasPrefix(k, "mrope_")) {
			c.fail("rope parameter %q is not implemented", k)
		}
	}
	outer := c.floatOr(d.theta, d.thetaKey)
	whole := d.partial == 0
	if whole {
		d.partial = 1
	}
	r := &Rope{
		Kind: RopeKind(p.textOr("default", "rope_type", "type")), Theta: p.floatOr(outer, "rope_theta"),
		Factor: p.floatOr(0, "factor"), MaxPositions: c.intOr(0, "max_position_embeddings", "n_positions"), Attention: 1,
		BetaFast: p.floatOr(32, "beta_fast"), BetaSlow: p.floatOr(1, "beta_slow"), Truncate: p.boolOr(true, "truncate"),
		LowFreq: p.floatOr(0, "low_freq_factor"), HighFreq: p.floatOr(0, "high_freq_factor"),
		Short: p.floats("short_factor"), Long: p.floats("long_factor"),
	}
	if r.Kind == "mrope" && d.sections { // as transformers 4 has it
		r.Kind = RopeDefault
	}
	partial := p.floatOr(c.floatOr(d.partial, d.partialKey), "partial_rotary_factor")
	r.Dim = int(float64(headDim) * partial)
	if r.Kind == RopeProportional {
		r.Dim, r.Turning = headDim, int(partial*float64(headDim))/2
	} else if whole && partial != 1 {
		c.fail("%s %v is not implemented for this architecture", d.partialKey, partial)
	}
	// transformers lets the outer one win where the model has it.
	r.Original = c.intOr(p.intOr(r.MaxPositions, "original_max_position_embeddings"), "original_max_position_embeddings")
	c.checkRope(r, p, headDim)
	if c.err == nil && p.err != nil {
		c.err = p.err
	}
	return r
}

// ropeParameters is rope_parameters of transformers 5, or rope_scaling of 4.
func (c *config) ropeParameters(layerType string, noScaling bool) map[string]any {
	v, ok := c.get("rope_parameters")
	if !ok && !noScaling {
		v, ok = c.get("rope_scaling")
	}
	if !ok {
		return nil
	}
	m, isMap := v.(map[string]any)
	if !isMap {
		c.fail("rope_parameters: expected an object, found %v", v)
		return nil
	}
	nested, perType := m[layerType]
	for _, k := range []string{"full_attention", "sliding_attention", "chunked_attention"} {
		_, is := m[k]
		perType = perType || is
	}
	if !perType {
		return m
	}
	sub, isMap := nested.(map[string]any)
	if !isMap {
		c.fail("rope_parameters: no parameters for layers of type %q", layerType)
	}
	return sub
}

func (c *config) floats(key string) []float64 {
	v, ok := c.get(key)
	if !ok {
		return nil
	}
	list, ok := v.([]any)
	out := make([]float64, len(list))
	for i, x := range list {
		f, isNumber := asFloat(x)
		ok = ok && isNumber
		out[i] = f
	}
	if !ok {
		c.fail("%s: expected a list of numbers, found %v", key, v)
	}
	return out
}

// checkRope refuses what is not there and sets the attention factor.
func (c *config) checkRope(r *Rope, p *config, headDim int) {
	if !(r.Theta > 0) || r.Dim < 2 || r.Dim%2 != 0 || r.Dim > headDim {
		c.fail("rope: theta %v, %d rotary elements of a head of %d; expected a positive theta and an even number", r.Theta, r.Dim, headDim)
	}
	factor := func() {
		if !(r.Factor > 0) {
			c.fail("rope type %q: factor: expected a positive number, found %v", r.Kind, r.Factor)
		}
	}
	switch r.Kind {
	case RopeDefault:
	case RopeProportional:
		if r.Factor == 0 {
			r.Factor = 1
		}
	case RopeLinear:
		factor()
	case RopeDynamic:
		factor()
		if r.MaxPositions < 1 || r.Dim < 4 {
			c.fail("rope type %q: max_position_embeddings %d, %d rotary elements", r.Kind, r.MaxPositions, r.Dim)
		}
	case RopeLlama3:
		factor()
		if !(r.LowFreq > 0) || !(r.HighFreq > r.LowFreq) || r.Original < 1 {
			c.fail("rope type %q: low_freq_factor %v, high_freq_factor %v, original_max_position_embeddings %d", r.Kind, r.LowFreq, r.HighFreq, r.Original)
		}
	case RopeYarn, RopeLong:
		c.checkLongContext(r, p)
	default:
		c.fail("rope type %q is not implemented", r.Kind)
	}
}

func (c *config) checkLongContext(r *Rope, p *config) {
	if r.Original < 2 {
		c.fail("rope type %q: original_max_position_embeddings %d", r.Kind, r.Original)
		return
	}
	if r.Factor == 0 {
		r.Factor = float64(r.MaxPositions) / float64(r.Original)
	}
	if !(r.Factor > 0) {
		c.fail("rope type %q: factor: expected a positive number, found %v", r.Kind, r.Factor)
	}
	if r.Kind == RopeLong {
		if len(r.Short) != r.Dim/2 || len(r.Long) != r.Dim/2 {
			c.fail("rope type %q: %d short and %d long factors; expected %d", r.Kind, len(r.Short), len(r.Long), r.Dim/2)
		}
		if r.Factor > 1 {
			r.Attention = longScale(r.Factor, r.Original)
		}
	} else {
		r.Attention = yarnScale(r.Factor, 1)
		if m, all := p.floatOr(0, "mscale"), p.floatOr(0, "mscale_all_dim"); m != 0 && all != 0 {
			r.Attention = yarnScale(r.Factor, m) / yarnScale(r.Factor, all)
		}
	}
	r.Attention = p.floatOr(r.Attention, "attention_factor")
}
