package model

// A Spec is an architecture: what its parts are, how they are wired, and which tensors
// they use. It is data; [Describe] makes one from a configuration.
//
// Names of tensors that begin with "@" belong to the base model, whose prefix differs
// between checkpoints of one architecture; the others are whole.
type Spec struct {
	Type    string // model_type
	Hidden  int
	Vocab   int
	Causal  bool
	Embed   Embed
	Layers  []Layer
	Final   *Norm
	Project *Linear // after the final norm
	Head    *Head   // nil: the base model alone

	prefixes []string // what "@" may stand for
	ignored  []string // beginnings of names of tensors without a part in this pass
}

// Embed is the sum of token, position and type embeddings.
type Embed struct {
	Tokens       string // table [vocab, dim]
	Dim          int
	Scale        float32 // of token embeddings
	TokenProject *Linear // of token embeddings, before positions are added
	Positions    *Positions
	Types        string // table whose row 0 is added, or empty
	TypeRows     int
	Norm         *Norm
	Project      *Linear // of the sum
}

// Positions is a table of learned positions.
type Positions struct {
	Table string
	Rows  int
	Rule  PositionRule
	Pad   int // of AfterPad
}

// PositionRule is how a token gets its row in a table of learned positions.
type PositionRule int

// The rules.
const (
	ByColumn PositionRule = iota // its column, padding included (GPT-2, BERT)
	ByToken                      // 2 + tokens before it (OPT)
	AfterPad                     // Pad + how many tokens up to it are not the padding token, which gets Pad (RoBERTa)
)

// Linear is x W^T + b.
type Linear struct {
	Weight     string
	Bias       string // or empty
	In, Out    int
	Transposed bool // stored [in, out], unless it is stored in 4 bits (GPT-2's Conv1D)
	Stack      int  // more than 0: the matrix is number Index of a tensor [Stack, out, in]
	Index      int
}

// Norm is RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467) or LayerNorm (Ba et al. 2016,
// arXiv 1607.06450) over groups of Dim elements:
//
//	RMSNorm     x / sqrt(mean(x^2) + Eps) * w
//	LayerNorm   (x - mean(x)) / sqrt(var(x) + Eps) * w + b
//
// Weight has Groups*Dim elements, for one group after the other.
type Norm struct {
	Layer        bool   // LayerNorm
	Weight, Bias string // or empty
	Dim, Groups  int
	Eps          float64
	PlusOne      bool // the weight is stored less one
}

// Wiring is how attention and feed-forward block are joined to the residual stream.
type Wiring int

// The wirings of the package comment.
const (
	Sequential Wiring = iota
	Parallel
	PostNorm
)

// Layer is one transformer block.
type Layer struct {
	Wiring   Wiring
	AttnNorm *Norm // n1
	AttnPost *Norm // n2
	MLPNorm  *Norm // n3
	MLPPost  *Norm // n4
	Residual float32
	Attn     Attention
	MLP      *MLP
	MoE      *MoE
}

// Attention is softmax attention (Vaswani et al. 2017) with grouped heads (Ainslie et al.
// 2023). The outputs of Inputs lie side by side in a row, in which head h has its query,
// key and value at the columns listed.
type Attention struct {
	Heads, KVHeads    int
	HeadDim, ValueDim int
	Inputs            []Linear
	QCols, KCols      []int
	VCols             []int
	QNorm, KNorm      *Norm // per head, or over all heads when Dim is that wide
	NormAfterRope     bool
	Clip              float32 // heads are clipped to +-Clip before the rope; 0: not
	Rope              *Rope
	Latent            *Latent
	Scale             float32
	Window            int // a token sees so many, itself included; 0: all
	Softcap           float32
	Slopes            []float32
	Sinks             string
	Causal            bool
	Out               Linear
}

// Latent is multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): keys and values
// come from a compressed vector, the rotary part of the key is shared by all heads.
//
//	q       = QUp(QNorm(x's first QRank columns)), or those columns themselves with QRank 0
//	k, v    = KVUp(KVNorm(c)) per head      c: the next KVRank columns
//	k_rope  = the last RopeDim columns
//
// A head's query and key are NopeDim elements without positions, then RopeDim with.
type Latent struct {
	QRank, KVRank    int
	NopeDim, RopeDim int
	QNorm, KVNorm    *Norm
	QUp              *Linear
	KVUp             Linear
}

// MLP is a feed-forward block. With a gate (Shazeer 2020, arXiv 2002.05202) it is
// Down(act(g) * u), where g and u are the halves of Up's outputs, or Gate's and Up's;
// else Down(act(Up(x))).
type MLP struct {
	Gated  bool
	Gate   *Linear // nil when Up makes both
	Up     Linear
	Down   Linear
	Act    Activation
	Inner  int
	Clamp  *GLUClamp
	XIELU  *XIELU
	Paired bool // g and u alternate in Up's outputs
}

// XIELU is the activation of Apertus (Huang and Schlag 2024, arXiv 2411.13010), by the names
// of its parameters, one element each. With p = ln(1+exp(AlphaP)), n = Beta+ln(1+exp(AlphaN)):
//
//	p*x^2 + Beta*x                              x > 0
//	n*(exp(min(x, Eps)) - 1 - x) + Beta*x       else
type XIELU struct{ AlphaP, AlphaN, Beta, Eps string }

// GLUClamp is the gate of gpt-oss: g <= Limit, |u| <= Limit, g*sigmoid(Alpha*g)*(u+1).
type GLUClamp struct{ Alpha, Limit float32 }

// Scoring is how a router's outputs become weights of experts.
type Scoring int

// The scorings.
const (
	SoftmaxAll  Scoring = iota // softmax over all experts, then the top ones
	SoftmaxTop                 // the top ones, then softmax over them
	Sigmoid                    // sigmoid, then the top ones (DeepSeek-V3)
	SparseMixer                // one after the other, each from those near the largest score left (Phi-3.5-MoE)
)

// MoE is a mixture of experts: sum over the TopK experts e with the largest scores of
// weight_e * e(x), plus Shared(x), times sigmoid(SharedGate(x)) where there is one.
type MoE struct {
	Router     Linear
	Scoring    Scoring
	Correction string // bias that counts for the choice only, or empty
	TopK       int
	Jitter     float32 // of SparseMixer: how near, as half a part of the score
	Normalize  bool    // weights of the chosen sum to one
	Scale      float32 // of the weights
	Groups     int     // experts are in so many groups, of which TopGroups are eligible; 0: none
	TopGroups  int
	GroupBest  int // how many scores of a group make its own: 1 or 2
	Experts    []MLP
	Shared     *MLP
	SharedGate *Linear
}

// Head maps the final hidden state to logits, of the vocabulary or of labels:
//
//	x = Norm(act(Transform(x)))          of masked language models and encoders
//	softcap(Scale * (x W^T + b))
type Head struct {
	Transform *Linear
	Act       Activation
	Norm      *Norm
	Out       Linear
	Scale     float32
	Softcap   float32
	Labels    bool // of a classifier, not the vocabulary
	Pick      Pick
	Pad       int // of LastToken: the padding token; -1: there is none
}
