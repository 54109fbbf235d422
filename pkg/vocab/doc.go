// Package vocab turns text into token ids and back, exactly as the model's
// authors did.
//
// A Vocab is one model's vocabulary: its tokens, the rules that cut text into
// them, and the tokens that begin and end a text. It is read from GGUF metadata
// (FromGGUF) or from a Hugging Face directory (FromHF), trained from text
// (TrainBPE), or made from a text's characters (NewChar). It is written back in
// Hugging Face's layout by WriteHF.
//
// # How text becomes ids
//
// Added tokens are found first; what lies between them goes through the
// normalizer, the pre-tokenizer and the model, in that order. The families are
// byte-level BPE ("bpe": GPT-2 and its descendants), SentencePiece BPE with
// byte fallback ("spm": Llama 2, Mistral, Phi-3) and characters ("char").
//
// Control tokens (begin, end, turn marks) are read from text only where
// Options.Special says so and never inside a range of Options.Plain. Text that
// merely looks like a control token stays text, so a user cannot write one.
//
// # Cost
//
// Encoding is linear in the text, up to the logarithm of a heap: pre-tokenizers
// are hand-written scanners that look at each character a bounded number of
// times, and merging uses a heap over a linked list. Patterns that no scanner
// knows run on a backtracking engine under a time limit.
//
// # What it is not
//
// It knows nothing of chat templates (package template), of weights, or of
// files other than the tokenizer's own.
//
// # Use
//
// A Vocab never changes once made and may be used by many goroutines. A Decoder
// belongs to one.
package vocab
