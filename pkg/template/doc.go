// Package template renders the chat templates that come with models: the part
// of Jinja2 that they use, set up as Hugging Face's transformers sets it up
// (trim_blocks, lstrip_blocks, an order-keeping tojson, raise_exception,
// strftime_now, break and continue).
//
// Templates are not trusted. A template can read only its variables and call only the
// functions of this package, and it runs under a Budget of steps, memory, output and time.
// There is no import, no include, and no way to reach attributes of Go values.
//
// # What text may become a control token
//
// A rendered prompt mixes the template's own text, which may hold control tokens, with text
// from users, which may not. Strings therefore record which of their bytes are data: all
// strings decoded by DecodeJSON and all plain Go strings given as variables are data; the
// template's literals and the result of Trusted are not. Joining, slicing, trimming and
// replacing keep the marks of every byte. A function that rewrites text marks its whole
// result as data if any byte of its input was. Result.Data lists the ranges for
// vocab.Options.Plain.
//
// # Use
//
// Parse a template once; a Template is immutable and may be rendered by many goroutines.
// Chat is the usual entry point. The service tokenizer calls it; this package does not
// depend on vocabularies.
package template
