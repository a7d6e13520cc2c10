package verify

import (
	"bytes"
	"encoding/json"
	"math"

	"github.com/nf4conv/nf4conv/compare"
	"github.com/nf4conv/nf4conv/inspect"
	"github.com/nf4conv/nf4conv/verify/metric"
)

// Schema names the JSON form of a [Result].
const Schema = "nf4conv.verify/1"

// Number is a figure. One that is not finite is null in JSON.
type Number float64

// MarshalJSON implements json.Marshaler.
func (n Number) MarshalJSON() ([]byte, error) {
	if math.IsNaN(float64(n)) || math.IsInf(float64(n), 0) {
		return []byte("null"), nil
	}
	return json.Marshal(float64(n))
}

// UnmarshalJSON implements json.Unmarshaler; null is NaN.
func (n *Number) UnmarshalJSON(b []byte) error {
	if bytes.Equal(b, []byte("null")) {
		*n = Number(math.NaN())
		return nil
	}
	var v float64
	err := json.Unmarshal(b, &v)
	*n = Number(v)
	return err
}

// Level is a verdict.
type Level string

// The verdicts, from good to bad.
const (
	Pass Level = "pass"
	Warn Level = "warn"
	Fail Level = "fail"
)

// worse is the worse of two verdicts.
func worse(a, b Level) Level {
	rank := map[Level]int{Pass: 0, Warn: 1, Fail: 2}
	if rank[b] > rank[a] {
		return b
	}
	return a
}

// The names of the stages.
const (
	StageContainer = "container"
	StageWeights   = "weights"
	StageLayers    = "layers"
	StageLogits    = "logits"
)

// Stages are the names of all stages in their order.
var Stages = []string{StageContainer, StageWeights, StageLayers, StageLogits, StageRederive}

// Result is everything that was measured, and what was made of it.
type Result struct {
	Schema    string       `json:"schema"`
	Base      compare.Side `json:"base"`
	Candidate compare.Side `json:"candidate"`
	// Kind is what the candidate is: "4-bit", "8-bit" or "16-bit". It chooses the default policy.
	Kind string `json:"kind"`
	// Causal is false where a stage found that the base is bidirectional.
	Causal bool `json:"causal"`
	Text   Text `json:"text"`
	// Adapters are what the candidate ran with, not merged, and BaseAdapters the base.
	Adapters     []string  `json:"adapters"`
	BaseAdapters []string  `json:"base_adapters"`
	Stages       []Stage   `json:"stages"`
	Findings     []Finding `json:"findings"` // what is wrong with the container; empty: nothing
	Loaders      []Loader  `json:"loaders"`
	Metrics      []Metric  `json:"metrics"`
	Tensors      []Tensor  `json:"tensors"`   // that both have, in the order of the base
	Layers       []Layer   `json:"layers"`    // 0: as it enters the first layer; then after each; the last after the final norm
	Diverges     int       `json:"diverges"`  // the first layer that diverges; -1: none, or not measured
	Histogram    []Bin     `json:"histogram"` // of the KLD of tokens
	// Rederived is what repeating the conversion found; absent where that was not asked for.
	Rederived *Rederived `json:"rederived,omitempty"`
	Policy    Policy     `json:"policy"`
	Outcomes  []Outcome  `json:"outcomes"` // of every gate of the policy
	Verdict   Level      `json:"verdict"`
}

// Loader is what a loader makes of the candidate.
type Loader = inspect.Loader

// Text is what the models were run on.
type Text struct {
	Name      string `json:"name"`    // of the text or the file of ids; empty: none
	Context   int    `json:"context"` // tokens that a sequence was to have; 0: as the file of ids has them
	Sequences int    `json:"sequences"`
	Tokens    int    `json:"tokens"`
	BLAKE3    string `json:"blake3"`    // of the token ids; empty: none
	Attention string `json:"attention"` // of the candidate: dense, or the block mask
	// Attended is the share of the pairs of tokens of dense attention that the candidate computes.
	Attended Number `json:"attended"`
}

// Stage tells whether a stage ran.
type Stage struct {
	Name string `json:"name"`
	Ran  bool   `json:"ran"`
	Why  string `json:"why"` // why it did not run
}

// Finding is a problem of the container.
type Finding struct {
	Where string `json:"where"` // a tensor, a module or a file
	Text  string `json:"text"`
}

// Metric is one figure of a run.
type Metric struct {
	Name    string `json:"name"`
	Value   Number `json:"value"`
	StdErr  Number `json:"std_err"` // null: there is none
	Samples int64  `json:"samples"` // tokens, tensors or modules that it was made of
}

// Tensor is a tensor of the candidate against that of the base, w' against w.
type Tensor struct {
	Name      string  `json:"name"`
	Storage   string  `json:"storage"`
	BaseStore string  `json:"base_storage"`
	Shape     []int64 `json:"shape"`
	FourBit   bool    `json:"four_bit"`
	RelError  Number  `json:"rel_error"` // |w-w'| / |w|
	SQNR      Number  `json:"sqnr_db"`   // 10 log10(|w|^2 / |w-w'|^2); null: nothing differs
	Cosine    Number  `json:"cosine"`    // <w,w'> / (|w| |w'|)
	MaxError  Number  `json:"max_error"` // max |w-w'|
	Gain      Number  `json:"gain"`      // <w,w'> / <w,w>
	// Expected is the relative error of w after quantizing it, to the type and in the blocks
	// of w', with float32 scales.
	Expected Number `json:"expected"`
	// ErrorRatio is RelError / Expected; 1 where both are 0.
	ErrorRatio Number `json:"error_ratio"`
	// Requantize is the share of values that change when w' is quantized again, more than
	// rounding to 16 bits explains. What quantization made does not change.
	Requantize Number `json:"requantize_changed"`
}

// Layer is the residual stream after a layer, rows of the candidate against those of the base.
type Layer struct {
	Layer     int    `json:"layer"`
	RelError  Number `json:"rel_error"`  // sqrt(sum |x-y|^2 / sum |x|^2) over all rows
	Growth    Number `json:"growth"`     // RelError minus that of the layer before
	Cosine    Number `json:"cosine"`     // mean over rows
	CosineErr Number `json:"cosine_err"` // its standard error
	CosineMin Number `json:"cosine_min"` // the smallest
	Rows      int64  `json:"rows"`       // rows compared
}

// Bin counts the tokens with From <= KLD < To.
type Bin struct {
	From  Number `json:"from"`
	To    Number `json:"to"`
	Count int64  `json:"count"`
}

// Metric finds a figure of the run.
func (r *Result) Metric(name string) (Metric, bool) {
	for _, m := range r.Metrics {
		if m.Name == name {
			return m, true
		}
	}
	return Metric{}, false
}

func (r *Result) add(name string, e metric.Estimate, samples int64) {
	r.Metrics = append(r.Metrics, Metric{name, Number(e.Value), Number(e.StdErr), samples})
}

// count adds a figure that has no error.
func (r *Result) count(name string, value float64, samples int64) {
	r.add(name, metric.Estimate{Value: value, StdErr: math.NaN()}, samples)
}

func (r *Result) find(where, text string) { r.Findings = append(r.Findings, Finding{where, text}) }
