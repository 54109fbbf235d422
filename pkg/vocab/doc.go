// Package vocab encodes text as token ids and decodes ids to text, exactly as the
// tokenizers of the models' authors do.
//
// A Vocab is one model's vocabulary: its tokens, the rules that split text into
// them, and the tokens that begin and end a text. It is read from GGUF metadata
// (FromGGUF), a Hugging Face folder (FromHF), a SentencePiece model
// (FromSentencePiece) or a tiktoken file (FromTiktoken), trained from text (TrainBPE,
// TrainUnigram), or made from a text's characters (NewChar). WriteHF writes it as
// Hugging Face files.
//
// # How text becomes ids
//
// Added tokens are found first. The text between them goes through the normalizer,
// the pre-tokenizer and the model, in that order. The model families are byte-level
// BPE ("bpe": GPT-2 and its descendants), SentencePiece BPE with byte fallback
// ("spm": Llama 2, Mistral, Phi-3), unigram ("unigram": T5), WordPiece
// ("wordpiece": BERT), one token per word ("word") and per character ("char").
//
// Control tokens (begin, end, turn markers) are read from text only with
// Options.Special, and never inside a range of Options.Plain. Otherwise text that
// looks like a control token stays text, so a user cannot write one.
//
// # Cost
//
// Encoding takes O(n log n) time in the length of the text. Pre-tokenizers are
// hand-written scanners that look at each character a bounded number of times, and
// merging uses a heap over a linked list. Patterns without a scanner run on the
// linear-time engine of package pattern.
//
// # What it is not
//
// It does not render chat templates (package template) and reads no files but the
// tokenizer's own.
//
// # Use
//
// A Vocab is immutable and safe for concurrent use. A Decoder belongs to one
// goroutine.
package vocab
