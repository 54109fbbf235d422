// Package eval defines how language models are evaluated: which texts a task shows to a model, which of its numbers
// count, and how certain the result is. The definitions are those of EleutherAI's lm-evaluation-harness, so figures
// can be compared: acc, acc_norm, word and byte perplexity, bits per byte and exact match.
//
// A task is a file of JSON lines in one of the forms that public sets have (Parse detects it). Each line becomes a
// Doc: a context with choices, a prompt with an answer, or a text. The caller asks the model for log-likelihoods or
// texts and passes them to Doc.Choose, Doc.Judge or Rolling. What a doc adds to a metric is a Part; Summarise and
// Compare turn the parts of all docs into values with bootstrap errors and paired tests.
//
// The package is pure: no model, network, clock or file. Its random numbers are counter-based, so equal inputs give
// equal errors and p-values.
package eval
