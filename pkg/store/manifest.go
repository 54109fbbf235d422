package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Limits of a manifest.
const (
	MaxManifest = 4 << 20 // bytes of its text
	MaxFiles    = 4096
	MaxFile     = 1 << 40 // bytes of a file
	MaxModel    = 4 << 40 // bytes of all files
	maxName     = 128     // bytes of a name
	maxPath     = 240     // bytes of a path
	maxDepth    = 4       // folders of a path
	maxText     = 2048    // bytes of a source or revision
)

// The names of the manifest, and of the digests of the chunks of all its files, in a model's folder. They are for those
// who copy or serve the folder.
const (
	ManifestName = "lamina.json"
	SumsName     = "lamina.sums"
)

// Format names the form of a manifest.
const Format = "lamina-model/1"

// Sum is a SHA-256.
type Sum [sha256.Size]byte

// SumOf returns the digest of data.
func SumOf(data []byte) Sum { return sha256.Sum256(data) }

// ParseSum parses 64 hexadecimal digits in lower case.
func ParseSum(text string) (Sum, error) {
	var s Sum
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != len(s) || text != strings.ToLower(text) {
		return s, fault.Field("sha256", "parse %.80q: want 64 hexadecimal digits in lower case", text)
	}
	return Sum(b), nil
}

// String returns the digest in hexadecimal digits.
func (s Sum) String() string { return hex.EncodeToString(s[:]) }

// MarshalText is String.
func (s Sum) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText is ParseSum.
func (s *Sum) UnmarshalText(text []byte) error {
	parsed, err := ParseSum(string(text))
	*s = parsed
	return err
}

// Manifest says what a model consists of.
type Manifest struct {
	Format string `json:"format"`
	Name   string `json:"name"`
	Digest string `json:"digest"` // of the model, as in weights.Digest
	// Source is where the model was fetched from, and Revision which version of it; either may be empty.
	Source   string `json:"source,omitempty"`
	Revision string `json:"revision,omitempty"`
	Files    []File `json:"files"` // sorted by path
}

// File is a file of a model.
type File struct {
	Path      string `json:"path"` // relative, with slashes
	Size      int64  `json:"size"`
	SHA256    Sum    `json:"sha256"`
	ChunkSize int64  `json:"chunk_size"`
	Chunks    Sum    `json:"chunks"` // the digest of the digests of all chunks (Sums.Root)
}

// ManifestError reports a manifest that is refused.
type ManifestError struct {
	Field string // such as "files[3].path"
	Msg   string
}

// Error names the field.
func (e *ManifestError) Error() string {
	return fmt.Sprintf("read manifest: %s: %s", e.Field, e.Msg)
}

// FaultCode returns DataLoss.
func (e *ManifestError) FaultCode() fault.Code { return fault.DataLoss }

func refuse(field, format string, args ...any) error {
	return &ManifestError{Field: field, Msg: fmt.Sprintf(format, args...)}
}

// ParseManifest parses and checks a manifest. Every fault is a *ManifestError.
func ParseManifest(text []byte) (*Manifest, error) {
	if len(text) > MaxManifest {
		return nil, refuse("text", "want at most %d bytes, got %d", MaxManifest, len(text))
	}
	if !utf8.Valid(text) {
		return nil, refuse("text", "it is not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields() // such as one that makes a file a link
	var m Manifest
	if err := d.Decode(&m); err != nil {
		return nil, refuse("text", "%.200s", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, refuse("text", "there is more behind the manifest")
	}
	return &m, m.Check()
}

// Encode returns the text of a manifest.
func (m *Manifest) Encode() ([]byte, error) {
	if err := m.Check(); err != nil {
		return nil, err
	}
	text, err := json.MarshalIndent(m, "", "  ")
	return append(text, '\n'), err
}

// Check checks every field. An error is a *ManifestError.
func (m *Manifest) Check() error {
	if m.Format != Format {
		return refuse("format", "want %q, got %.80q", Format, m.Format)
	}
	if err := CheckName(m.Name); err != nil {
		return refuse("name", "%s", err.Error())
	}
	if hex, ok := strings.CutPrefix(m.Digest, "sha256:"); !ok {
		return refuse("digest", "want sha256: and hexadecimal digits, got %.80q", m.Digest)
	} else if _, err := ParseSum(hex); err != nil {
		return refuse("digest", "%s", err.Error())
	}
	for field, text := range map[string]string{"source": m.Source, "revision": m.Revision} {
		if len(text) > maxText || strings.ContainsFunc(text, control) {
			return refuse(field, "want at most %d bytes without control characters", maxText)
		}
	}
	return checkFiles(m.Files)
}

// checkFiles checks the files of a manifest, one by one and with each other.
func checkFiles(files []File) error {
	if len(files) == 0 || len(files) > MaxFiles {
		return refuse("files", "want 1 to %d files, got %d", MaxFiles, len(files))
	}
	total := int64(0)
	paths := map[string]bool{}   // in lower case, since some file systems do not tell them apart
	folders := map[string]bool{} // the same of the folders above
	for i, f := range files {
		field := func(name string) string { return fmt.Sprintf("files[%d].%s", i, name) }
		if err := checkPath(f.Path); err != nil {
			return refuse(field("path"), "%s", err.Error())
		}
		lower := strings.ToLower(f.Path)
		if paths[lower] {
			return refuse(field("path"), "%.80q occurs twice", f.Path)
		}
		paths[lower] = true
		for dir := path.Dir(lower); dir != "."; dir = path.Dir(dir) {
			folders[dir] = true
		}
		if i > 0 && files[i-1].Path > f.Path {
			return refuse(field("path"), "want files sorted by path, got %.80q after %.80q", f.Path, files[i-1].Path)
		}
		if f.Size < 0 || f.Size > MaxFile {
			return refuse(field("size"), "want 0 to %d bytes, got %d", int64(MaxFile), f.Size)
		}
		if total += f.Size; total > MaxModel {
			return refuse(field("size"), "want at most %d bytes in all files", int64(MaxModel))
		}
		if !chunkSizeFits(f.ChunkSize, f.Size) {
			return refuse(field("chunk_size"), "want a power of two from %d to %d and at most %d chunks, got %d",
				MinChunk, MaxChunk, MaxChunks, f.ChunkSize)
		}
	}
	for i, f := range files {
		if folders[strings.ToLower(f.Path)] {
			return refuse(fmt.Sprintf("files[%d].path", i), "%.80q is a file and a folder", f.Path)
		}
	}
	return nil
}

// CheckName checks the name of a model: letters, digits, and after the first one also . _ and -.
func CheckName(name string) error {
	if name == "" || len(name) > maxName || strings.ContainsFunc(name, func(r rune) bool { return !plain(r) }) ||
		strings.ContainsRune(".-_", rune(name[0])) || reserved(name) {
		return fault.Field(
			"name",
			"%.80q: want 1 to %d letters, digits, dots, dashes and underscores, and a letter or "+
				"digit first",
			name,
			maxName,
		)
	}
	return nil
}

func plain(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-", r)
}

func control(r rune) bool { return r < ' ' || r == 0x7f || r == utf8.RuneError }

// checkPath checks that a path stays inside its folder on every system.
func checkPath(p string) error {
	bad := func(why string) error { return fmt.Errorf("%.80q %s", p, why) }
	switch {
	case p == "" || len(p) > maxPath:
		return fmt.Errorf("want 1 to %d bytes, got %d", maxPath, len(p))
	case strings.ContainsFunc(p, control) || strings.ContainsAny(p, `\:*?"<>|`):
		return bad("has a character that a path may not have")
	case path.IsAbs(p) || path.Clean(p) != p ||
		strings.EqualFold(p, ManifestName) || strings.EqualFold(p, SumsName):
		return bad("is no plain relative path")
	}
	parts := strings.Split(p, "/")
	if len(parts) > maxDepth+1 {
		return bad("has too many folders")
	}
	for _, part := range parts {
		if strings.HasPrefix(part, "..") || strings.HasSuffix(part, ".") || strings.HasSuffix(part, " ") ||
			reserved(part) {
			return bad("has a part that is no plain name")
		}
	}
	return nil
}

// reserved reports whether Windows takes a name for a device.
func reserved(name string) bool {
	base, _, _ := strings.Cut(strings.ToLower(name), ".")
	if slices.Contains([]string{"con", "prn", "aux", "nul"}, base) {
		return true
	}
	return len(base) == 4 && (strings.HasPrefix(base, "com") || strings.HasPrefix(base, "lpt")) && base[3] >= '0' &&
		base[3] <= '9'
}

// Size returns the number of bytes of all files.
func (m *Manifest) Size() int64 {
	total := int64(0)
	for _, f := range m.Files {
		total += f.Size
	}
	return total
}

// File returns a file by its path.
func (m *Manifest) File(path string) (File, bool) {
	i, ok := slices.BinarySearchFunc(m.Files, path, func(f File, p string) int { return strings.Compare(f.Path, p) })
	if !ok {
		return File{}, false
	}
	return m.Files[i], true
}

// ParseSums divides the digests of the chunks of all files, one after the other, and checks them.
func (m *Manifest) ParseSums(data []byte) ([]Sums, error) {
	var out []Sums
	for _, f := range m.Files {
		n := min(len(data), f.NumChunks()*len(Sum{}))
		sums, err := f.ParseSums(data[:n])
		if err != nil {
			return nil, err
		}
		out, data = append(out, sums), data[n:]
	}
	if len(data) > 0 {
		return nil, damage(SumsName, -1, "%d bytes are left over", len(data))
	}
	return out, nil
}

// Content returns a digest of the files: of their paths, sizes and digests. Two models with the same content may
// have different names and sources.
func (m *Manifest) Content() Sum {
	h := sha256.New()
	for _, f := range m.Files {
		fmt.Fprintf(h, "%d %s\n%d %s %d %s\n", len(f.Path), f.Path, f.Size, f.SHA256, f.ChunkSize, f.Chunks)
	}
	return Sum(h.Sum(nil))
}

// key names what is kept for a model under its name: it depends on the name and the content.
func (m *Manifest) key() string {
	content := m.Content()
	return SumOf([]byte(m.Name + "\n" + content.String())).String()[:32]
}
