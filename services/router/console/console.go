package console

import (
	"embed"
	"net/http"
	"path"
)

//go:embed static
var static embed.FS

// Pages returns the handler of the page and its files, whose patterns are those of PageRoutes.
func Pages() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc(indexRoute, func(w http.ResponseWriter, r *http.Request) { serve(w, r, "index.html") })
	mux.HandleFunc(fileRoute, func(w http.ResponseWriter, r *http.Request) { serve(w, r, r.PathValue("file")) })
	return secure(mux)
}

const (
	indexRoute = "GET /{$}"
	fileRoute  = "GET /console/{file}"
)

// PageRoutes returns the patterns of Pages.
func PageRoutes() []string { return []string{indexRoute, fileRoute} }

// serve serves one of the embedded files.
func serve(w http.ResponseWriter, r *http.Request, file string) {
	w.Header().Set("Cache-Control", "no-cache") // a newer binary has newer files
	http.ServeFileFS(w, r, static, path.Join("static", path.Base(file)))
}

// policy lets the page load only its own files, and forbids framing it.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// secure sets the headers of every file.
func secure(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		next.ServeHTTP(w, r)
	})
}
