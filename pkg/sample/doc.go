// Package sample picks tokens from logits. It is pure: what it picks depends on the
// rules, the tokens so far, the position and the logits alone, and randomness is a
// hash of (seed, position, choice), so any sampler repeats any other's pick.
//
// Rules are a chain of steps, each of which sees what the one before it left. A step
// changes logits (penalties, biases, temperatures) or drops ids (top-k, top-p and their
// kin); what is left is drawn from, softmax over the remaining logits. Of equal logits
// the lower id is the better one, everywhere.
//
// # Candidates instead of rows
//
// A chain can run over the best candidates of a row and the row's log-sum-exp. Of the
// ids that are not at hand it is then known that none is better than the last
// candidate, and together with the candidates they have the mass that the log-sum-exp
// says. Each step either needs no more than that, or the pick fails with ErrTooFew and
// the whole row is needed. Where both ways pick, they do the same operations in the same
// order: the pick is the whole row's, or there is none.
//
// # Sources
//
// Steps follow llama.cpp (dynamic temperature, top-n-sigma, XTC, DRY, penalties) and
// Hugging Face transformers (epsilon and eta cut-offs, typical, repetition penalty,
// no-repeat n-gram, bad words, beam search). Mirostat is that of Basu et al. (arXiv
// 2007.14966), a token's surprise being the model's own, so that it can be replayed from
// log-probabilities.
package sample
