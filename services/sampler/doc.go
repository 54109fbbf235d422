// Package sampler is the service between the last stage and the router: it turns
// logits into tokens under each request's rules and says when a generation ends by
// an end token or its length. Stop texts need text and are the router's.
//
// A pipeline joins two conversations, Sample (the router's) and Push (the last
// stage's); proto/lamina/sampler/v1 tells their order. State is a function of a
// session's rules and emitted tokens, so a session can move to any other sampler.
package sampler
