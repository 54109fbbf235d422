// Package modelfiles tests the promises about model files: no file crashes a process, makes it
// hang, or makes it use more memory than twice the file's size and 64 MiB. The tests damage
// every format field by field and open the files as the product does.
package modelfiles
