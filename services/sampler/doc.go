// Package sampler is the service between the last stage and the router. It picks tokens from
// logits under each session's sampling parameters, and ends a generation at an end-of-text
// id or at its length. Stop strings need text and are the router's.
//
// A pipeline has two conversations, Sample with the router and Push with the last stage,
// which proto/lamina/sampler/v1 specifies. The state of a session is a function of its rules
// and emitted tokens, so any other sampler can take it over. What is wrong with a session is
// answered by failed and never ends a stream, which all sessions of a pipeline share.
//
// # Metrics
//
//   - lamina_sampler_tokens_total: tokens picked.
//   - lamina_sampler_row_bytes_total: bytes of the rows from last stages, as messages,
//     including rows of rejected draft tokens and whole rows that were asked for. Divided by
//     the tokens it is the traffic per token: a few bytes for greedy sampling, some 1.5 KiB
//     with 256 candidates, and four bytes per id of the vocabulary with parameters that need
//     the whole row.
//   - lamina_sampler_whole_rows_total: whole rows asked for because the candidates were too
//     few.
package sampler
