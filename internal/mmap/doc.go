// Package mmap maps files into memory, read-only, or reads them on systems that cannot. Model files and token
// data use it. A mapped file must not be truncated while it is in use: reading past its end stops the program.
package mmap
