// Package vllm is the part of the router's API that vLLM's server has beside OpenAI's: /tokenize and /detokenize,
// and /score and /rerank (also below /v1).
//
// /tokenize takes a prompt, or the messages and tools of a chat, and returns the ids of its tokens. /detokenize
// returns the text of ids.
//
// /score and /rerank compare texts by the cosine of their embeddings, which are computed as for /v1/embeddings. That
// is what vLLM does for embedding models; models that read both texts together (cross-encoders) are not served.
// /score pairs text_1 with text_2: one with one, one with each, or lists of one length. /rerank orders documents by
// their score against the query, the best first; equal scores keep the order of the documents.
//
// Errors have OpenAI's shape.
package vllm
