// Package modelfiles tests what a user is promised of model files: no
// file crashes a process, hangs it, or makes it take more memory than
// twice the file's size and 64 MiB. Every format is damaged field by field and
// opened the way the product opens it.
package modelfiles
