package openai

import (
	"log/slog"
	"net/http"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Fail writes an error as this API does, for a request that was refused before it reached the API.
func Fail(w http.ResponseWriter, err error) {
	s := &server{log: slog.New(slog.DiscardHandler), timeout: 30 * time.Second}
	if fault.CodeOf(err) == fault.NotFound { // otherwise it would mean the model
		s.refuse(w, http.StatusNotFound, "unknown_url", err.Error())
		return
	}
	s.fail(w, err)
}
