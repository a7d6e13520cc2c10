package convert

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/nf4conv/nf4conv/arch"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/formats/peft"
	"github.com/nf4conv/nf4conv/internal/fault"
)

// How the factors of a term lie in the job's order; package lora has the table.
const (
	layoutLinear     = "linear"     // left B, right A
	layoutTransposed = "transposed" // left A^T, right B^T
	layoutBias       = "bias"       // B alone: a vector
	layoutExperts    = "experts"    // a stack of matrices, each with its own rows of A and columns of B
	layoutStored     = "stored"     // of a Conv1D, until the order of the job is known
)

// Term is one adapter's part of an addition.
type Term struct {
	Adapter   string  `json:"adapter"`
	Layout    string  `json:"layout"`
	Rank      int64   `json:"rank"`
	Scale     float64 `json:"scale"`               // alpha/r or alpha/sqrt(r), times the adapter's weight
	A         int     `json:"a"`                   // index among the job's inputs
	B         int     `json:"b"`                   // index among the job's inputs
	Magnitude int     `json:"magnitude,omitempty"` // index among the job's inputs; 0: no DoRA
	Experts   int64   `json:"experts,omitempty"`   // of the stack that A and B are for; 0: no stack
	Expert    int64   `json:"expert,omitempty"`    // which of them this tensor is
	FirstRow  int64   `json:"first_row,omitempty"` // of the expert's matrix, of which this tensor is a run of rows
	Swapped   bool    `json:"swapped,omitempty"`   // the expert's matrix is the transpose of B A
}

// target binds a pair of factors to the tensors it is added to.
func (m *merger) target(t *peft.Target, all []peft.Target) error {
	if m.tie.head != "" && t.Module == m.tie.head && !t.Embedding {
		return m.tie.addHead(m, t)
	}
	if it, ok := m.find(t.Module, "weight"); ok && t.Nested == 0 {
		return m.bind(it, t)
	}
	if prefix, ok := expertsModule(t.Module); ok {
		return m.experts(t, all, prefix)
	}
	if t.Nested > 0 {
		return fault.Inputf("its factors are nested %d deep, which only experts' are", t.Nested)
	}
	return fault.WithHint(fault.Inputf("the base has no tensor for it; expected %q", t.Module+".weight"),
		"is this the base that the adapter was trained on? It says %q", m.adapter.Config().Base)
}

// bind adds a pair to one tensor.
func (m *merger) bind(it *item, t *peft.Target) error {
	term, err := m.term(t, t.Module, t.A.Shape[0])
	if err != nil {
		return err
	}
	a, b, w := t.A.Shape, t.B.Shape, it.t.Shape()
	want := append([]int64{b[0]}, a[1:]...) // [out, in, kernel...]
	switch {
	case t.Embedding && it.at.Role != arch.RoleEmbedding:
		return fault.Inputf("the base's %q is no embedding, the factors are those of one", it.name)
	case t.Embedding:
		term.Layout = layoutTransposed
		want = []int64{a[1], b[0]}
		if len(w) == 2 && w[0] != a[1] && w[1] == b[0] {
			return fault.WithHint(fault.Inputf("the embedding %q has %d rows, the adapter was trained with %d", it.name, w[0], a[1]),
				"the vocabulary was resized for training and the adapter does not hold the new rows: train with save_embedding_layers=True")
		}
	case it.at.Role == arch.RoleConv1D:
		term.Layout = layoutStored
		if !isEncodedConv(it.t, m.set) {
			slices.Reverse(want)
		}
	case it.at.Role == arch.RoleEmbedding:
		return fault.Inputf("the base's %q is an embedding, the factors are those of a linear layer", it.name)
	}
	if !slices.Equal(w, want) {
		return m.mismatch(it, "factors A %v and B %v", a, b)
	}
	if err := m.addTerm(it, term); err != nil {
		return err
	}
	if t.Bias == nil {
		return nil
	}
	bias, ok := m.find(t.Module, "bias")
	if !ok {
		return fault.Inputf("lora_bias adds to the bias of this module, which has none")
	}
	if !slices.Equal(bias.t.Shape(), t.Bias.Shape) {
		return m.mismatch(bias, "a bias %v", t.Bias.Shape)
	}
	term.Layout, term.a, term.b, term.magnitude = layoutBias, m.ref(*t.Bias), m.ref(*t.Bias), nil
	return m.addTerm(bias, term)
}

// term begins a term: its scale goes by the name under which it was trained.
func (m *merger) term(t *peft.Target, name string, rank int64) (boundTerm, error) {
	cfg := m.adapter.Config()
	_, warning := cfg.AlphaOf(name)
	if warning != "" {
		m.warn("%s: %s", m.opt.Name, warning)
	}
	scale := cfg.ScaleOf(name, rank) * m.opt.Weight
	if math.IsNaN(scale) || math.IsInf(float64(float32(scale)), 0) {
		return boundTerm{}, fault.Inputf("its scale is %v", scale)
	}
	term := boundTerm{Term: Term{Adapter: m.opt.Name, Layout: layoutLinear, Rank: rank, Scale: scale}, a: m.ref(t.A), b: m.ref(t.B)}
	if t.Magnitude != nil {
		if m.opt.Weight != 1 {
			return term, fault.WithHint(fault.Inputf("DoRA scales the sum, so that it cannot count %v", m.opt.Weight), "give this adapter the weight 1")
		}
		ref := m.ref(*t.Magnitude)
		term.magnitude = &ref
	}
	return term, nil
}

// addTerm appends a term to those of a tensor.
func (m *merger) addTerm(it *item, term boundTerm) error {
	dora := term.magnitude != nil
	for i := range it.terms {
		dora = dora || it.terms[i].magnitude != nil
	}
	switch {
	case dora && len(it.terms) > 0:
		return fault.WithHint(fault.Inputf("DoRA scales what the other adapters made of %q: the order would count", it.name), "merge them one after the other")
	case it.rows != nil:
		return fault.Inputf("rows of %q are replaced too", it.name)
	case it.from != "" && it.from != m.label():
		return fault.WithHint(fault.Inputf("%q replaces the tensor %q that it was trained to be added to", it.from, it.name), "merge them one after the other")
	}
	it.terms = append(it.terms, term)
	it.by = append(it.by, m.opt.Name)
	return nil
}

// expertsModule tells whether a module is the parent of experts.
func expertsModule(module string) (string, bool) {
	return module, module == "experts" || strings.HasSuffix(module, ".experts")
}

// layers of an expert on disk, by the fused parameter that holds their rows.
var expertRows = map[string][][]string{
	"gate_up_proj": {{"gate_proj", "up_proj"}, {"w1", "w3"}},
	"down_proj":    {{"down_proj"}, {"w2"}},
}

// experts binds a pair that was trained on a stack of experts. Its keys do not say which
// parameter it is: wrappers nest, the parameter registered first innermost, and
// gate_up_proj is registered before down_proj.
func (m *merger) experts(t *peft.Target, all []peft.Target, module string) error {
	depth := 0
	for i := range all {
		if all[i].Module == t.Module {
			depth++
		}
	}
	var names []string
	for _, p := range []string{"gate_up_proj", "down_proj"} {
		full := module + "." + p
		if slices.ContainsFunc(m.adapter.Config().TargetParameters, func(s string) bool { return s == full || strings.HasSuffix(full, "."+s) }) {
			names = append(names, p)
		}
	}
	if len(names) != depth || t.Nested >= depth {
		return fault.Inputf("%d pairs of factors belong to its parameters, and target_parameters %q names %d of gate_up_proj and down_proj", depth, m.adapter.Config().TargetParameters, len(names))
	}
	param := names[depth-1-t.Nested]
	parts, dims, err := m.expertParts(module, param)
	if err != nil {
		return err
	}
	swapped, err := m.orientation(t, dims, param, parts[0].expert >= 0)
	if err != nil {
		return err
	}
	if t.A.Shape[0]%dims[0] != 0 {
		return fault.Inputf("%s: factors of rank %d for %d experts", param, t.A.Shape[0], dims[0])
	}
	term, err := m.term(t, module+"."+param, t.A.Shape[0]/dims[0])
	if err != nil {
		return err
	}
	if term.Rank == 0 {
		return fault.Inputf("%s: factors %v for %d experts", param, t.A.Shape, dims[0])
	}
	term.Layout, term.Experts, term.Swapped = layoutExperts, dims[0], swapped
	for _, p := range parts {
		term := term
		term.Expert, term.FirstRow = p.expert, p.firstRow
		if err := m.addTerm(p.it, term); err != nil {
			return err
		}
	}
	return nil
}

// expertPart is a tensor on disk: a run of rows of one expert's matrix, or all of them.
type expertPart struct {
	it       *item
	expert   int64 // -1: the whole stack
	firstRow int64
}

// expertParts finds the tensors of a fused parameter, and its shape in memory.
func (m *merger) expertParts(module, param string) ([]expertPart, [3]int64, error) {
	var dims [3]int64
	modules := []string{module, strings.Replace(module, ".mlp.experts", ".block_sparse_moe.experts", 1)}
	for _, base := range modules {
		if i, ok := m.byName[base+"."+param]; ok {
			shape := m.items[i].t.Shape()
			if len(shape) != 3 {
				return nil, dims, fault.Inputf("tensor %q: shape %v; expected a stack of matrices", m.items[i].name, shape)
			}
			return []expertPart{{&m.items[i], -1, 0}}, [3]int64(shape), nil
		}
		for _, leaves := range expertRows[param] {
			parts, dims, err := m.perExpert(base, leaves)
			if err != nil || len(parts) > 0 {
				return parts, dims, err
			}
		}
	}
	return nil, dims, fault.WithHint(fault.Inputf("the base has no experts for parameter %q", module+"."+param), "is this the base that the adapter was trained on?")
}

var expertName = regexp.MustCompile(`^(\d+)\.([^.]+)\.weight$`)

// perExpert gathers the layers of every expert under base.
func (m *merger) perExpert(base string, leaves []string) ([]expertPart, [3]int64, error) {
	var dims [3]int64
	n := int64(0)
	for name := range m.byName {
		if rest, ok := strings.CutPrefix(name, base+"."); ok {
			if f := expertName.FindStringSubmatch(rest); f != nil && f[2] == leaves[0] {
				e, err := strconv.ParseInt(f[1], 10, 32)
				if err != nil {
					return nil, dims, fault.Inputf("tensor %q: expected the number of an expert", name)
				}
				n = max(n, e+1)
			}
		}
	}
	if n == 0 {
		return nil, dims, nil
	}
	if n > int64(len(m.items)) {
		return nil, dims, fault.Inputf("%q has an expert number %d and not that many tensors", base, n-1)
	}
	var parts []expertPart
	for e := range n {
		var row int64
		for _, leaf := range leaves {
			name := fmt.Sprintf("%s.%d.%s.weight", base, e, leaf)
			i, ok := m.byName[name]
			if !ok {
				return nil, dims, fault.Inputf("the base has no tensor %q", name)
			}
			shape := m.items[i].t.Shape()
			if len(shape) != 2 || dims[2] != 0 && shape[1] != dims[2] {
				return nil, dims, fault.Inputf("tensor %q: shape %v; expected a matrix as the other experts are", name, shape)
			}
			parts = append(parts, expertPart{&m.items[i], e, row})
			row, dims[2] = row+shape[0], shape[1]
		}
		if e > 0 && row != dims[1] {
			return nil, dims, fault.Inputf("%q: expert %d has %d rows, the others %d", base, e, row, dims[1])
		}
		dims[1] = row
	}
	dims[0] = n
	return parts, dims, nil
}

// orientation tells whether an expert's matrix is the transpose of B A. Up to 0.18, PEFT took
// the first dimension of the parameter [E, d1, d2] for the input; 0.19.0 swapped where it
// should not; since 0.19.1 the modules that multiply from the left (GPT-OSS, Llama 4) are
// told apart. Shapes decide unless d1 = d2. On disk, one tensor per expert has [out, in] in
// any case.
func (m *merger) orientation(t *peft.Target, dims [3]int64, param string, perExpert bool) (swapped bool, err error) {
	x, y := t.A.Shape[1], t.B.Shape[0]
	direct, turned := x == dims[2] && y == dims[1], x == dims[1] && y == dims[2]
	switch {
	case direct && !turned:
		return false, nil
	case turned && !direct:
		return true, nil
	case !direct:
		return false, fault.WithHint(fault.Inputf("%s: factors A %v and B %v do not go with experts of shape %v", param, t.A.Shape, t.B.Shape, dims),
			"is this the base that the adapter was trained on? It says %q", m.adapter.Config().Base)
	}
	left := slices.Contains([]string{"gpt_oss", "llama4", "llama4_text"}, m.model.Type)
	v, ok := version(m.adapter.Config().Version)
	turn := left && perExpert
	switch {
	case !ok:
		return false, fault.WithHint(fault.Inputf("%s: experts of shape %v are square, and adapter_config.json has no peft_version that says which way round the factors are", param, dims),
			"add \"peft_version\" with the version it was trained with to adapter_config.json")
	case v < 19_000:
		return !turn, nil
	case v == 19_000:
		return !left != turn, nil
	}
	return left != turn, nil
}

// version is a PEFT version as one number, 0.19.1 as 19001.
func version(s string) (int, bool) {
	f := regexp.MustCompile(`^(\d{1,3})\.(\d{1,3})(?:\.(\d{1,3}))?`).FindStringSubmatch(s)
	if f == nil {
		return 0, false
	}
	major, _ := strconv.Atoi(f[1])
	minor, _ := strconv.Atoi(f[2])
	patch, _ := strconv.Atoi(f[3])
	return major*1_000_000 + minor*1000 + patch, true
}

// equalTransposed tells whether a matrix is the transpose of another.
func equalTransposed(a, b hf.Tensor) (bool, error) {
	if len(a.Shape) != 2 || len(b.Shape) != 2 || a.Shape[0] != b.Shape[1] || a.Shape[1] != b.Shape[0] {
		return false, nil
	}
	x, err := peft.ReadAll(&a)
	if err != nil {
		return false, err
	}
	y, err := peft.ReadAll(&b)
	if err != nil {
		return false, err
	}
	rows, cols := int(a.Shape[0]), int(a.Shape[1])
	for i := range rows {
		for j := range cols {
			if x[i*cols+j] != y[j*rows+i] {
				return false, nil
			}
		}
	}
	return true, nil
}
