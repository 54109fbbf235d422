// Package sampler is the service between the last stage and the router: it turns
// logits into tokens under each request's rules and says when a generation ends by
// an end token or its length. Stop texts need text and are the router's.
//
// A pipeline joins two conversations, Sample (the router's) and Push (the last
// stage's); proto/lamina/sampler/v1 tells their order. State is a function of a
// session's rules and emitted tokens, so a session can move to any other sampler.
//
// # Metrics
//
//   - lamina_sampler_tokens_total: tokens picked.
//   - lamina_sampler_row_bytes_total: bytes of the rows that last stages sent, as
//     messages, those for nothing and those sent whole upon request among them. Divided
//     by the tokens it is what a token costs on the way: a few bytes where a pick is
//     greedy, some 1.5 KiB where 256 candidates go, four bytes an id of the vocabulary
//     where rules need the whole row.
//   - lamina_sampler_whole_rows_total: whole rows asked for because candidates were too
//     few.
package sampler
