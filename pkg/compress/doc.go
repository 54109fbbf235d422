// Package compress encodes the gradient of a tensor for the gradient bus. An encoding is lossy or, for
// float32, exact. Its size depends on the number of values only, and it decodes to the same bits everywhere:
//
//	f32   4 bytes a value; exact
//	bf16  2 bytes a value, rounded to nearest even
//	int8  blocks of 256 values: a float32 scale and one byte a value
//	topk  the share of values with the largest magnitude: a 32-bit index and a float32 for each
//
// int8 and topk use error feedback: the caller keeps a residual for each tensor, which is what earlier
// encodings have left out. It is added to the next gradient, so nothing is lost, only delayed (Seide et al.,
// 1-Bit Stochastic Gradient Descent, 2014; Karimireddy et al., Error Feedback Fixes SignSGD, 2019).
//
// The package is pure. The caller keeps residuals in checkpoints, and makes sure that values are finite.
package compress
