package fault_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// torn is the error type of another package.
type torn struct{ file string }

func (t torn) Error() string         { return "read " + t.file }
func (t torn) FaultCode() fault.Code { return fault.DataLoss }

func TestCodeOf_NearestInTheChain(t *testing.T) {
	cause := fault.New(fault.Exhausted, "take a slot of pipeline 7")
	for _, c := range []struct {
		name string
		err  error
		want fault.Code
	}{
		{"nil", nil, fault.Unspecified},
		{"fault", cause, fault.Exhausted},
		{"wrapped by fmt", fmt.Errorf("generate: %w", cause), fault.Exhausted},
		{"wrapped by a fault", fault.Wrap(fault.Unavailable, cause, "call shard 3"), fault.Unavailable},
		{"own type", fmt.Errorf("load: %w", torn{"a.gguf"}), fault.DataLoss},
		{"own type inside a fault", fault.Wrap(fault.Invalid, torn{"a.gguf"}, "load"), fault.Invalid},
		{"canceled", fmt.Errorf("wait: %w", context.Canceled), fault.Canceled},
		{"deadline", context.DeadlineExceeded, fault.DeadlineExceeded},
		{"code before context", fault.Wrap(fault.Aborted, context.Canceled, "step 4"), fault.Aborted},
		{"missing file", &fs.PathError{Op: "open", Path: "x", Err: fs.ErrNotExist}, fault.NotFound},
		{"unknown", errors.New("odd"), fault.Internal},
	} {
		if got := fault.CodeOf(c.err); got != c.want {
			t.Errorf("%s: code %v, want %v", c.name, got, c.want)
		}
	}
}

func TestError_TextAndCause(t *testing.T) {
	cause := errors.New("no route")
	err := fault.Wrap(fault.Unavailable, cause, "call shard %d", 3).After(time.Second)
	if err.Error() != "call shard 3: no route" || !errors.Is(err, cause) || err.RetryAfter != time.Second {
		t.Errorf("got %q, cause kept %v, retry after %v", err, errors.Is(err, cause), err.RetryAfter)
	}
	field := fault.Field("max_tokens", "%d is above %d", 9, 8)
	if field.Error() != "max_tokens: 9 is above 8" || fault.CodeOf(field) != fault.Invalid {
		t.Errorf("got %q of code %v", field, fault.CodeOf(field))
	}
	field.Op = "generate"
	if field.Error() != "generate: max_tokens: 9 is above 8" {
		t.Errorf("got %q", field)
	}
}

func TestPublic_HasTheFaultsAlone(t *testing.T) {
	path := &fs.PathError{Op: "open", Path: "/secret", Err: fs.ErrNotExist}
	inner, full := fault.Wrap(fault.Unavailable, path, "read the key"), fault.New(fault.Internal, "it is full")
	for want, err := range map[string]error{
		"not found":              path,
		"read the key":           inner,
		"url: ask: read the key": &fault.Error{Field: "url", Msg: "ask", Err: fmt.Errorf("/secret: %w", inner)},
		"ask":                    fmt.Errorf("/secret: %w", fault.Wrap(fault.Exhausted, path, "ask")),
		"ask: it is full":        fault.Wrap(fault.Exhausted, errors.Join(path, full), "ask"),
	} {
		if got := fault.Public(err); got != want {
			t.Errorf("got %q of %q, want %q", got, err, want)
		}
	}
}

func TestRetryable_OnlyWhatMayPass(t *testing.T) {
	for code := fault.Unspecified; code <= fault.Internal; code++ {
		want := code == fault.Exhausted || code == fault.Unavailable || code == fault.Aborted
		if got := fault.Retryable(fault.New(code, "x")); got != want {
			t.Errorf("%v is retryable: %v, want %v", code, got, want)
		}
		if fmt.Sprint(code) == fmt.Sprintf("code(%d)", code) {
			t.Errorf("code %d has no name", code)
		}
	}
	if fault.Retryable(nil) {
		t.Error("nil is retryable")
	}
}
