package kernel

import (
	"fmt"

	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// Matrix is a weight W[N,I]: row n holds the I inputs of output n. Exactly one
// of Dense and Raw is set.
type Matrix[F tensor.Float] struct {
	Rows, Cols int          // N, I
	DType      tensor.DType // type of Raw
	Raw        []byte       // [N, RowBytes(I)], often memory-mapped; never written
	Dense      Buffer[F]    // [N,I]; what training updates
	Plain      bool         // multiply in F without rounding activations, as in a narrow model
	Packed     any          // the set's own form of Raw, made by Pack; nil until then
}

// Product is one of several products with the same input.
type Product[F tensor.Float] struct {
	Y    Buffer[F] // [T,N]
	W    *Matrix[F]
	Bias Buffer[F] // [N], or nil
}

// ProductGrad is the gradient of a Product.
type ProductGrad[F tensor.Float] struct {
	DY    Buffer[F] // [T,N]
	W     *Matrix[F]
	DW    Buffer[F] // [N,I], added to; or nil
	DBias Buffer[F] // [N], added to; or nil
	Fresh bool      // overwrite DW in place of adding to it
}

// Act is an elementwise activation.
type Act uint8

// The activations of the supported architectures.
const (
	SiLU     Act = iota + 1 // x·sigmoid(x)
	GELUTanh                // GELU by the tanh approximation ("gelu_new", "gelu_pytorch_tanh")
	GELU                    // exact GELU, by erf
)

// Rotary describes the rotary position embedding of the first Dims components of each head.
type Rotary struct {
	Dims        int       // rotated components, even, at most D
	Interleaved bool      // pairs are (2i, 2i+1) if set, else (i, i+Dims/2)
	Freq        []float64 // [Dims/2] radians per position
	Scale       float64   // factor of cos and sin (YaRN's attention factor); else 1
	Far         []float64 // [Dims/2] radians per position from position From on (LongRoPE); nil: Freq
	From        int
}

// At returns the radians per position of pair i at a position.
func (r *Rotary) At(pos, i int) float64 {
	if r.Far != nil && pos >= r.From {
		return r.Far[i]
	}
	return r.Freq[i]
}

// Span is a run of consecutive positions of one sequence inside a batch of rows:
// Rows consecutive rows, the first at position Pos, over that sequence's KV.
type Span[F tensor.Float] struct {
	Rows int
	Pos  int
	KV   KV[F]
}

// Heads describes the shape of attention.
type Heads struct {
	H, K, D int     // H query heads share K key/value heads of size D; K divides H
	Scale   float64 // multiplies q·k; usually 1/sqrt(D)
	Window  int     // 0: full causal; w: a position sees itself and the w-1 before it
	// Sinks has one score for each head that takes part in the softmax of Attend without a value; nil
	// means none. AttendCausal ignores it: Set.Sink applies sinks to its result.
	Sinks   []float32
	Softcap float64 // soft cap of scaled scores: cap·tanh(score/cap); 0 means none
	// Dropout drops softmax weights in training. A row is a query head's: row r of head h is r·H + h, and the
	// index in it is the position. Attend ignores it.
	Dropout Dropout
}

// AdamW has the factors of an optimizer's step (Loshchilov and Hutter, arXiv
// 1711.05101): with x = Scale·g, m = Beta1·m + (1-Beta1)·x, v = Beta2·v + (1-Beta2)·x²
// and p = Keep·p - Size·m/(sqrt(Root·v)+Epsilon).
type AdamW struct {
	Scale, Beta1, Beta2, Size, Root, Epsilon, Keep float64
}

// MissingError says that a set has no kernel for an operation. The operation panics with it.
type MissingError struct{ Device, Operation string }

func (e *MissingError) Error() string {
	return fmt.Sprintf("%s: %s has no kernel for it yet", e.Operation, e.Device)
}

// Set is a complete implementation of the operations over element type F.
// Methods may be called from several goroutines at once.
type Set[F tensor.Float] interface {
	Memory[F]

	// Name returns the value of --kernels that selects the set, such as "ref" or "cpu".
	Name() string
	// Class names the family of sets whose results are bit-identical, such as "cpu/7".
	Class() string
	// KV returns the type of the set's KV caches. It is part of the class.
	KV() KVType

	// BFloat16 returns a set on the same workers whose products over dense matrices, forward
	// and backward, round both operands to bfloat16 and accumulate in F. Closing this set
	// closes it too.
	BFloat16() Set[F]
	// UsesBFloat16 reports whether the set was made by BFloat16. Training then stores the
	// activations it saves for the backward pass in bfloat16.
	UsesBFloat16() bool
	// RoundBF16 rounds x in place to bfloat16, to nearest even, and writes the bits to h,
	// which has the same length.
	RoundBF16(h []uint16, x Buffer[F])
	// WidenBF16 overwrites x with the values of h.
	WidenBF16(x Buffer[F], h []uint16)

	// Pack converts a raw matrix to the form that the set multiplies fastest, if there is one. Embed still
	// reads Raw. A packed matrix must not be used with another kind of set.
	Pack(w *Matrix[F])
	// MatMul computes y[T,N] = x[T,I]·Wᵀ + bias[N]; a nil bias is zero.
	MatMul(y, x Buffer[F], w *Matrix[F], bias Buffer[F], t int)
	// MatMuls computes several products of one x[T,I], each as MatMul would.
	MatMuls(x Buffer[F], t int, products ...Product[F])
	// MatMulGrad is the gradient of MatMuls: it overwrites dx[T,I] with Σ DY·W over the
	// products, and adds DW += DYᵀ·x and DBias += Σ_t DY for each. A nil dx is not computed;
	// x may be nil if no product has a DW.
	MatMulGrad(dx, x Buffer[F], t int, products ...ProductGrad[F])

	// Embed copies row ids[t] of w[V,C] to y[T,C].
	Embed(y Buffer[F], w *Matrix[F], ids []int32)
	// EmbedGrad adds row t of dy[T,C] to row ids[t] of dw[V,C], t ascending.
	EmbedGrad(dw, dy Buffer[F], ids []int32, c int)

	// RMSNorm computes y = x/sqrt(mean(x²)+eps)·g over each row of x[T,C].
	RMSNorm(y, x, g Buffer[F], eps float64, t, c int)
	// RMSNormGrad adds the gradient of RMSNorm to dx[T,C] and dg[C].
	RMSNormGrad(dx, dg, dy, x, g Buffer[F], eps float64, t, c int)
	// LayerNorm computes y = (x-mean)/sqrt(var+eps)·g + b over each row of x[T,C].
	LayerNorm(y, x, g, b Buffer[F], eps float64, t, c int)
	// LayerNormGrad adds the gradient of LayerNorm to dx[T,C], dg[C] and db[C].
	LayerNormGrad(dx, dg, db, dy, x, g Buffer[F], eps float64, t, c int)

	// Rotate rotates each head of x[T,H,D] in place by the angles of its row's position pos[T].
	// Angles are computed in float64 from the position alone.
	Rotate(x Buffer[F], r *Rotary, pos []int32, h, d int)
	// RotateGrad is the transpose of Rotate, in place on dx[T,H,D].
	RotateGrad(dx Buffer[F], r *Rotary, pos []int32, h, d int)

	// Store writes keys and values k, v[rows, K*D] of consecutive positions from pos on,
	// as KV.Write does.
	Store(kv KV[F], pos int, k, v Buffer[F], heads, d int)
	// Attend computes causal softmax attention of the rows of q[ΣRows,H*D] over
	// each span's cache, which already holds the rows' own keys and values.
	// y has the shape of q.
	Attend(y, q Buffer[F], spans []Span[F], a Heads)
	// AttendCausal computes attention in training: B sequences of T rows, q and y [B,T,H,D], k and v
	// [B,T,K,D]. It writes lse[B,T,H], the log-sum-exp of each row's scores, for the backward pass, and
	// makes no T×T matrix.
	AttendCausal(y, lse, q, k, v Buffer[F], b, t int, a Heads)
	// AttendCausalGrad overwrites dq, dk, dv.
	AttendCausalGrad(dq, dk, dv, dy, y, lse, q, k, v Buffer[F], b, t int, a Heads)
	// AttendDocuments is AttendCausal for sequences of different lengths, one behind the other: a row attends
	// only to rows of its own document. The result has the bits of one call of AttendCausal for each document.
	AttendDocuments(y, lse, q, k, v Buffer[F], lengths []int, a Heads)
	// AttendDocumentsGrad overwrites dq, dk, dv.
	AttendDocumentsGrad(dq, dk, dv, dy, y, lse, q, k, v Buffer[F], lengths []int, a Heads)

	// GLU computes y = act(gate)·up, elementwise.
	GLU(y, gate, up Buffer[F], act Act)
	// GLUGrad overwrites dgate and dup, one of which may be dy itself. Unless y is nil, it also writes the
	// result of GLU to y.
	GLUGrad(dgate, dup, y, dy, gate, up Buffer[F], act Act)
	// Activate computes y = act(x), elementwise.
	Activate(y, x Buffer[F], act Act)
	// ActivateGrad overwrites dx, which may be dy itself. Unless y is nil, it also writes the result of
	// Activate to y.
	ActivateGrad(dx, y, dy, x Buffer[F], act Act)
	// Add computes y += x, elementwise.
	Add(y, x Buffer[F])
	// Scale computes x *= by, elementwise.
	Scale(x Buffer[F], by float64)
	// Shift computes y = x + by, elementwise.
	Shift(y, x Buffer[F], by float64)
	// Dropout drops values of the rows of x[T,C] in place. It is its own gradient.
	Dropout(x Buffer[F], d Dropout, t, c int)
	// Softcap computes x = limit·tanh(x/limit) in place, elementwise.
	Softcap(x Buffer[F], limit float64)
	// SoftcapGrad takes dy in place to the gradient of Softcap's input, from its output y.
	SoftcapGrad(dy, y Buffer[F], limit float64)
	// ClampedGate computes the arguments of SiLU's GLU for the gate of GPT-OSS, which is
	// g·sigmoid(alpha·g)·(u+1) of a gate bounded by limit above and an up bounded by limit both ways:
	// g = alpha·min(gate, limit), u = (clamp(up)+1)/alpha.
	ClampedGate(g, u, gate, up Buffer[F], alpha, limit float64)
	// ClampedGateGrad takes the gradients of g and u in place to those of gate and up.
	ClampedGateGrad(dg, du, gate, up Buffer[F], alpha, limit float64)

	// Sink scales each head of att[T,H,D] by its share of a softmax that the head's sink takes part
	// in, given the log-sum-exp lse[T,H] of the other scores.
	Sink(att, lse, sinks Buffer[F], h, d int)
	// SinkGrad adds to dsinks[H] and scales datt in place. With att the output of Sink, datt is then
	// what AttendCausalGrad takes: the part of the log-sum-exp makes up for the part of the share.
	SinkGrad(datt, dsinks, att, lse, sinks Buffer[F], h, d int)

	// Route turns a router's logits[T,E] into probabilities in place and chooses the topK experts of
	// each row; of equal ones the first. A row's weights are the probabilities of its experts,
	// divided by their sum if normalize is set. They are written to weight[T*TopK], which the result keeps,
	// as it keeps logits.
	Route(weight, logits Buffer[F], t, e, topK int, normalize bool) Routing[F]
	// RouteGrad overwrites dlogits[T,E] with the gradient of Route's logits, from r.DWeight.
	RouteGrad(dlogits Buffer[F], r *Routing[F], t, e int, normalize bool)
	// Dispatch copies rows of x[T,C] to dst[T*TopK,C] in grouped order.
	Dispatch(dst, x Buffer[F], r *Routing[F], c int)
	// DispatchGrad adds d[T*TopK,C] to dx[T,C], grouped indices ascending.
	DispatchGrad(dx, d Buffer[F], r *Routing[F], c int)
	// Combine adds the output x[hi-lo,C] of grouped indices lo to hi, times their weights, to y[T,C].
	Combine(y, x Buffer[F], r *Routing[F], lo, hi, c int)
	// CombineGrad overwrites dx[hi-lo,C] with the gradient of Combine's x and keeps that of the
	// weights in r.
	CombineGrad(dx, dy, x Buffer[F], r *Routing[F], lo, hi, c int)

	// LogSumExp returns log Σ exp(x) of one row, in float64.
	LogSumExp(x Buffer[F]) float64
	// CrossEntropy writes loss[T], the negative log-likelihood of targets[T]
	// under logits[T,V] (0 where the target is negative: a masked row), and,
	// unless dlogits is nil, overwrites dlogits[T,V] with scale·(softmax-onehot).
	CrossEntropy(loss []float64, dlogits, logits Buffer[F], targets []int32, scale float64, t, v int)

	// ZLossGrad adds the gradient of scale·z·log²Z, with Z the sum of exponentials of a row, to
	// dlogits[T,V]. CrossEntropy has written dlogits and loss[T] with the same scale.
	ZLossGrad(dlogits, logits Buffer[F], loss []float64, targets []int32, z, scale float64, t, v int)

	// SumSquares adds the squares of x in float64.
	SumSquares(x Buffer[F]) float64
	// AdamW steps weights p and their moments m and v by gradient g, all of one length.
	AdamW(p, m, v, g Buffer[F], o AdamW)
}
