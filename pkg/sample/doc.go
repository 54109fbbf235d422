// Package sample picks tokens from logits. It is pure: a pick depends only on the sampling
// parameters, the tokens so far, the position and the logits. Randomness is a hash of
// (seed, position, choice), so that every sampler makes the same pick.
//
// Sampling parameters (Rules) make a chain of steps, each of which sees what the one
// before it left. A step changes logits (penalties, biases, temperatures) or drops ids
// (top-k, top-p and similar). The token is drawn from the softmax of the remaining logits.
// Of equal logits the lower id always ranks first.
//
// # Candidates instead of rows
//
// A chain can run over the best candidates of a row of logits and the row's log-sum-exp.
// The other ids are unknown, but none of them ranks above the last candidate, and their
// total probability follows from the log-sum-exp. A step that needs to know more fails
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
