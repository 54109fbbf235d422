// Package sample picks tokens from logits. It is pure: what it picks depends on the
// rules, the tokens so far, the position and the logits alone, and randomness is a
// hash of (seed, position, choice), so any sampler repeats any other's pick.
//
// Sampling parameters (Rules) make a chain of steps, each of which sees what the one
// before it left. A step changes logits (penalties, biases, temperatures) or drops ids
// (top-k, top-p and similar). The token is drawn from the softmax of the remaining logits.
// Of equal logits the lower id is always the better one.
//
// # Candidates instead of rows
//
// A chain can run over the best candidates of a row of logits and the row's log-sum-exp.
// The other ids are not known, but none of them is better than the last candidate, and
// their probability follows from the log-sum-exp. A step that needs to know more fails
// with ErrTooFew, and the whole row is needed. Otherwise both ways do the same operations
// in the same order, so that candidates and the whole row give the same token.
//
// # Sources
//
// Steps follow llama.cpp (dynamic temperature, top-n-sigma, XTC, DRY, penalties) and
// Hugging Face transformers (epsilon and eta cut-offs, typical, repetition penalty,
// no-repeat n-gram, bad words, beam search). Mirostat is that of Basu et al. (arXiv
// 2007.14966). A token's surprise is measured under the model's own distribution, so that
// a generation can be replayed from its log-probabilities.
package sample
