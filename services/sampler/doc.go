// Package sampler is the service between the last stage and the router. It picks tokens from logits
// with each session's sampling parameters. It ends a generation at an end-of-text id or at its
// maximum length. The router handles stop strings, because they need text.
//
// A pipeline has two streams: Sample with the router and Push with the last stage.
// proto/lamina/sampler/v1 specifies them. The state of a session is a function of its sampling
// parameters and emitted tokens, so any other sampler can take it over. An error of one session is
// answered with failed. It never ends a stream, because all sessions of a pipeline share the
// stream.
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
