// Package chat is a conversation with a model in a terminal: an editor with several lines and a history, commands that
// begin with a slash, and answers that are shown as Markdown while they arrive.
//
// A Session owns the conversation. It reads from a Reader, which in a terminal is an Editor, asks the router, and
// writes answers through a Markdown. It knows no terminal itself, so tests drive it with a list of texts.
//
// Equal requests with equal seeds give equal texts. An answer that breaks off because the router restarts is therefore
// asked for again with its seed, and what was shown before is not shown again.
package chat
