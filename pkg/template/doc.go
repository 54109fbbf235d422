// Package template renders the chat templates that come with models: the part
// of Jinja2 that they use, set up as Hugging Face's transformers sets it up
// (trim_blocks, lstrip_blocks, an order-keeping tojson, raise_exception,
// strftime_now, break and continue).
//
// A template comes from a stranger. It can read nothing but its variables, call
// nothing but the functions listed here, and runs under a Budget of steps,
// memory, output and time. There is no import, no include, no attribute of the
// host language to reach.
//
// # What text may become a control token
//
// A rendered prompt mixes the template's own text, which may hold control
// tokens, with text from users, which may not. Strings therefore remember which
// of their bytes are data: every string decoded by DecodeJSON, and every plain
// Go string given as a variable, is data; the template's literals and what is
// passed through Trusted are not. The mark survives joining, cutting, trimming
// and replacing; a function that rewrites text makes all of its result data as
// soon as any of its input was. Result.Data lists the ranges for
// vocab.Options.Plain.
//
// # Use
//
// Parse once; a Template never changes and may be rendered by many goroutines.
// Chat is the usual way in. Package tokenizer calls it; nothing here knows of
// vocabularies.
package template
