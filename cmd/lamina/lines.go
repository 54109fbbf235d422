package main

import (
	"bufio"
	"io"
)

// lines reads input line by line.
type lines struct{ scan *bufio.Scanner }

func newLines(r io.Reader) *lines {
	scan := bufio.NewScanner(r)
	scan.Buffer(nil, 1<<20)
	return &lines{scan}
}

// next returns the next line, or io.EOF.
func (l *lines) next() (string, error) {
	if l.scan.Scan() {
		return l.scan.Text(), nil
	}
	if err := l.scan.Err(); err != nil {
		return "", err
	}
	return "", io.EOF
}
