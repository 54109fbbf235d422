package pull

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/store"
)

// DefaultEndpoint is the server of repositories.
const DefaultEndpoint = "https://huggingface.co"

// repository matches the name of a repository.
var repository = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$`)

// IsRepository reports whether a text may be the name of a repository.
func IsRepository(text string) bool { return repository.MatchString(text) }

const (
	maxPages    = 100
	maxListed   = 100_000 // files of a repository
	mainVersion = "main"
)

// Hub is a repository on a server with Hugging Face's layout: /api/models/OWNER/NAME/revision/REV and .../tree/REV list
// its files, and /OWNER/NAME/resolve/REV/FILE has them.
type Hub struct {
	Client     *Client
	Endpoint   string // empty for DefaultEndpoint
	Repository string // owner/name
	Revision   string // branch, tag or commit; empty for main
	Include    []string
}

// List pins the revision to a commit, and lists the files of the model.
func (h *Hub) List(ctx context.Context) (*Listing, error) {
	if !IsRepository(h.Repository) {
		return nil, fault.Field("source", "%.80q: want OWNER/NAME", h.Repository)
	}
	endpoint := h.Endpoint
	if endpoint == "" {
		endpoint = DefaultEndpoint
	}
	base, err := h.Client.parseURL(endpoint)
	if err != nil {
		return nil, err
	}
	revision := h.Revision
	if revision == "" {
		revision = mainVersion
	}
	if len(revision) > 200 || strings.ContainsFunc(revision, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return nil, fault.Field("revision", "%.80q: want a branch, a tag or a commit", revision)
	}
	info, err := h.info(ctx, base, revision)
	if err != nil {
		return nil, err
	}
	if info.SHA != "" {
		revision = info.SHA
	}
	files, err := h.tree(ctx, base, revision)
	if fault.CodeOf(err) == fault.NotFound && len(info.Siblings) > 0 { // servers with the first list alone
		files, err = nil, nil
		for _, s := range info.Siblings {
			files = append(files, File{Path: s.Name, Size: -1})
		}
	}
	if err != nil {
		return nil, err
	}
	if info.SHA == "" { // the revision may move, so each file is asked for what tells its content
		for i := range files {
			if files[i].SHA256 == nil {
				files[i].Size = -1
			}
		}
	}
	source := strings.TrimSuffix(bare(base), "/") + "/" + h.Repository
	l := &Listing{Name: NameOf(h.Repository), Source: source, Revision: revision}
	for i := range files {
		files[i].at = h.url(base, "", "/resolve/", revision, files[i].Path)
		files[i].origin = files[i].at
	}
	chosen, err := Choose(h.Repository, files, h.Include)
	if err != nil {
		return nil, err
	}
	for i, f := range chosen {
		if f.Size < 0 {
			var ranges bool
			if chosen[i].Size, chosen[i].tag, ranges, err = h.Client.probe(ctx, f.at); err != nil {
				return nil, err
			}
			chosen[i].whole = !ranges
			chosen[i].origin += " " + chosen[i].tag
		}
	}
	l.Files = chosen
	return l, nil
}

// url makes an address of parts, of which the last two are escaped.
func (h *Hub) url(base *url.URL, api, kind, revision, file string) string {
	out := strings.TrimSuffix(base.String(), "/") + api + "/" + h.Repository + kind + url.PathEscape(revision)
	if file == "" {
		return out
	}
	parts := strings.Split(file, "/")
	for i := range parts {
		parts[i] = url.PathEscape(parts[i])
	}
	return out + "/" + strings.Join(parts, "/")
}

// repoInfo is what a server says of a revision.
type repoInfo struct {
	SHA      string `json:"sha"`
	Siblings []struct {
		Name string `json:"rfilename"`
	} `json:"siblings"`
}

var commit = regexp.MustCompile(`^[0-9a-f]{7,64}$`)

func (h *Hub) info(ctx context.Context, base *url.URL, revision string) (*repoInfo, error) {
	text, _, err := h.Client.document(ctx, h.url(base, "/api/models", "/revision/", revision, ""))
	if fault.CodeOf(err) == fault.NotFound && revision == mainVersion { // servers that know no revisions here
		text, _, err = h.Client.document(ctx, strings.TrimSuffix(base.String(), "/")+"/api/models/"+h.Repository)
	}
	if err != nil {
		return nil, err
	}
	var info repoInfo
	if err := json.Unmarshal(text, &info); err != nil {
		return nil, fault.New(fault.DataLoss, "pull %s: read the revision: %.200s", h.Repository, err)
	}
	if info.SHA != "" && !commit.MatchString(info.SHA) {
		return nil, fault.New(fault.DataLoss, "pull %s: read the revision: %.80q is no commit", h.Repository, info.SHA)
	}
	if len(info.Siblings) > maxListed {
		return nil, fault.New(fault.DataLoss, "pull %s: it has more than %d files", h.Repository, maxListed)
	}
	return &info, nil
}

// tree lists all files of a revision, page by page.
func (h *Hub) tree(ctx context.Context, base *url.URL, revision string) ([]File, error) {
	var out []File
	at := h.url(base, "/api/models", "/tree/", revision, "") + "?recursive=true"
	for range maxPages {
		text, head, err := h.Client.document(ctx, at)
		if err != nil {
			return nil, err
		}
		files, err := parseTree(text)
		if err != nil {
			return nil, fmt.Errorf("pull %s: %w", h.Repository, err)
		}
		if out = append(out, files...); len(out) > maxListed {
			return nil, fault.New(fault.DataLoss, "pull %s: it has more than %d files", h.Repository, maxListed)
		}
		next := nextPage(head.Get("Link"))
		if next == "" {
			return out, nil
		}
		u, err := url.Parse(next)
		if err != nil {
			return nil, fault.New(fault.DataLoss, "pull %s: read the link to the next page: %.80q", h.Repository, next)
		}
		if u = base.ResolveReference(u); u.Host != base.Host || u.Scheme != base.Scheme {
			return nil, fault.New(fault.DataLoss, "pull %s: the next page of its files is on another server, %.80q",
				h.Repository, u.Host)
		}
		at = u.String()
	}
	return nil, fault.New(
		fault.DataLoss,
		"pull %s: the list of its files has more than %d pages",
		h.Repository,
		maxPages,
	)
}

// parseTree parses a page of a list of files.
func parseTree(text []byte) ([]File, error) {
	var entries []struct {
		Type string `json:"type"`
		Path string `json:"path"`
		Size int64  `json:"size"`
		LFS  *struct {
			SHA256 string `json:"oid"`
			Size   int64  `json:"size"`
		} `json:"lfs"`
	}
	if err := json.Unmarshal(text, &entries); err != nil {
		return nil, fault.New(fault.DataLoss, "read the list of files: %.200s", err)
	}
	var out []File
	for _, e := range entries {
		if e.Type != "file" {
			continue
		}
		f := File{Path: e.Path, Size: e.Size}
		if e.LFS != nil {
			sum, err := store.ParseSum(strings.TrimPrefix(e.LFS.SHA256, "sha256:"))
			if err != nil {
				return nil, fault.New(fault.DataLoss, "read the list of files: %.80s: lfs.oid: %s", e.Path, err)
			}
			f.Size, f.SHA256 = e.LFS.Size, &sum
		}
		if f.Size < 0 {
			return nil, fault.New(fault.DataLoss, "read the list of files: %.80s: size: got %d", e.Path, f.Size)
		}
		out = append(out, f)
	}
	return out, nil
}

// nextPage returns the address of the next page in a Link header.
func nextPage(link string) string {
	for part := range strings.SplitSeq(link, ",") {
		at, rest, ok := strings.Cut(part, ";")
		if ok && strings.Contains(rest, `rel="next"`) {
			return strings.Trim(strings.TrimSpace(at), "<>")
		}
	}
	return ""
}

// indexed lists the files that an index of safetensors names.
func indexed(text []byte) ([]string, error) {
	var index struct {
		WeightMap map[string]string `json:"weight_map"`
	}
	if err := json.Unmarshal(text, &index); err != nil {
		return nil, fault.New(fault.DataLoss, "read %s: %.200s", indexName, err)
	}
	seen := map[string]bool{}
	for _, file := range index.WeightMap {
		if strings.ContainsAny(file, `/\`) || !strings.HasSuffix(file, ".safetensors") {
			return nil, fault.New(fault.DataLoss, "read %s: %.80q is no plain file name", indexName, file)
		}
		if seen[file] = true; len(seen) > store.MaxFiles {
			return nil, fault.New(fault.DataLoss, "read %s: it names more than %d files", indexName, store.MaxFiles)
		}
	}
	return slices.Sorted(maps.Keys(seen)), nil
}

// Read opens a part of a file.
func (h *Hub) Read(ctx context.Context, f File, from, to int64) (io.ReadCloser, error) {
	return h.Client.read(ctx, f, from, to)
}
