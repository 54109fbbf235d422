package loadtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// TenantHeader is the header that names the tenant of a request to Lamina. Other servers ignore it.
const TenantHeader = "Lamina-Tenant"

const (
	dialTimeout = 5 * time.Second
	maxError    = 64 << 10 // bytes of an error's body that are read
	maxMessage  = 200      // bytes of an error's message that are reported
)

// client sends requests.
type client struct {
	http *http.Client
	key  string
}

func newClient(c *Config) *client {
	transport := c.Transport
	if transport == nil {
		transport = &http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			DialContext:         (&net.Dialer{Timeout: dialTimeout}).DialContext,
			MaxIdleConns:        c.Streams,
			MaxIdleConnsPerHost: c.Streams,
			IdleConnTimeout:     time.Minute,
			DisableCompression:  true, // compressed events may be held back
		}
	}
	return &client{key: c.Key, http: &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

func (c *client) close() { c.http.CloseIdleConnections() }

func (c *client) request(ctx context.Context, method, url string, body []byte) (*http.Request, error) {
	r, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "request %s", url)
	}
	r.Header.Set("Content-Type", "application/json")
	if c.key != "" {
		r.Header.Set("Authorization", "Bearer "+c.key)
	}
	return r, nil
}

// firstModel returns the first model that the server lists.
func (c *client) firstModel(ctx context.Context, base string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*dialTimeout)
	defer cancel()
	r, err := c.request(ctx, http.MethodGet, base+"/models", nil)
	if err != nil {
		return "", err
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return "", fault.Wrap(fault.Unavailable, err, "list models")
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxEvent))
	if err != nil {
		return "", fault.Wrap(fault.Unavailable, err, "list models")
	}
	var list struct {
		Data []struct {
			ID string `json:"id"`
		} `json:"data"`
	}
	if err := json.Unmarshal(text, &list); err != nil || resp.StatusCode != http.StatusOK || len(list.Data) == 0 {
		return "", fault.New(fault.Unavailable, "list models: status %d, want a list with at least one model; "+
			"name one with --model", resp.StatusCode)
	}
	return list.Data[0].ID, nil
}

// call is a request that is ready to be sent.
type call struct {
	base, path  string // of the URL
	tenant, key string
	body        []byte
	choices     int // n
	chat        bool
	resumable   bool
	id          string   // of a resumable request
	others      []string // base URLs from which it may be resumed, the next one first
}

// newCall writes the body of prompt number index.
func (c *Config) newCall(index int, p Prompt) (call, error) {
	out := call{tenant: p.Tenant, choices: 1, chat: p.Messages != nil || c.Endpoint == Chat}
	body := maps.Clone(p.Extra)
	if body == nil {
		body = map[string]json.RawMessage{}
	}
	set := func(name string, v any) {
		raw, err := json.Marshal(v)
		if err == nil {
			body[name] = raw
		}
	}
	if raw, ok := body["n"]; ok && (json.Unmarshal(raw, &out.choices) != nil || out.choices < 1) {
		return out, fault.Field("n", "prompt of line %d: want a number of choices, got %.40s", p.Line, raw)
	}
	seed := c.Seed + int64(index)
	if p.Seed != nil {
		seed = *p.Seed
	}
	set("seed", seed)
	if _, ok := body["temperature"]; !ok && c.Temperature != nil {
		set("temperature", *c.Temperature)
	}
	if limit := max(p.MaxTokens, 0); limit > 0 {
		set("max_tokens", limit)
	} else if c.MaxTokens > 0 {
		set("max_tokens", c.MaxTokens)
	}
	path := "/completions"
	switch {
	case out.chat && p.Messages != nil:
		body["messages"], path = p.Messages, "/chat/completions"
	case out.chat:
		set("messages", []map[string]string{{"role": "user", "content": p.Text}})
		path = "/chat/completions"
	default:
		set("prompt", p.Text)
	}
	// The key leaves out what does not change the answer: the names of the model and the tenant, and
	// how the answer is sent. Maps are written in the order of their keys.
	model, named := body["model"]
	delete(body, "model")
	canonical, err := json.Marshal(body)
	if err != nil {
		return out, fault.Wrap(fault.Invalid, err, "write request of line %d", p.Line)
	}
	sum := sha256.Sum256(append([]byte(path), canonical...))
	out.key = hex.EncodeToString(sum[:12])
	if set("model", c.Model); named {
		body["model"] = model
	}
	if out.resumable = c.Resume && out.choices == 1; out.resumable {
		set("resumable", true)
	}
	set("stream", true)
	set("stream_options", map[string]bool{"include_usage": true})
	if out.body, err = json.Marshal(body); err != nil {
		return out, fault.Wrap(fault.Invalid, err, "write request of line %d", p.Line)
	}
	out.path = path
	return out, nil
}

// Outcome says how a stream ended.
type Outcome string

// The outcomes. All but OK, Refused and Interrupted are failures.
const (
	OK          Outcome = "ok"
	Refused     Outcome = "refused"     // status 429 or 503
	Status      Outcome = "status"      // another status than 200
	Connect     Outcome = "connect"     // no response
	Timeout     Outcome = "timeout"     // the deadline of the stream passed
	Cut         Outcome = "cut"         // the stream ended without a finish reason for each choice
	ErrorEvent  Outcome = "error event" // the server ended the stream by an error event
	Malformed   Outcome = "malformed"   // what came is not a stream of completions
	Interrupted Outcome = "interrupted" // the load was stopped
)

// Failed reports whether the outcome is a failure of the server.
func (o Outcome) Failed() bool { return o != OK && o != Refused && o != Interrupted }

// Gap is a time without tokens: from one piece of text to the next, from the request to the first
// piece, or from the last piece to the end of a failed stream.
type Gap struct {
	From, To time.Time
	First    bool // from the request to the first piece
}

// Length returns how long the gap was.
func (g Gap) Length() time.Duration { return g.To.Sub(g.From) }

// keptGaps is how many of its longest gaps a sample holds.
const keptGaps = 32

// Sample is one stream that has ended.
type Sample struct {
	Index  int // of the request, in the order of sending
	Prompt int // index of the prompt
	URL    string
	Tenant string
	Key    string // of the request in Texts

	Planned time.Time // when the request was due
	Sent    time.Time
	Answer  time.Time // when the status came; zero if none came
	Resumed int       // how often the stream was resumed
	First   time.Time // when the first piece of text came; zero if none came
	End     time.Time
	Gaps    []Gap // the longest ones, in no order

	Outcome    Outcome
	Code       int           // HTTP status; 0 if none came
	RetryAfter time.Duration // of a refusal or an error event; 0 if none was given
	Message    string        // of a failure or refusal
	Pieces     int           // events with text
	Tokens     int           // as the server counted them, or else Pieces
	Text       Text
	// Compared says that Text was compared with another answer to the same request, and Identical
	// whether it is the same; for a stream that failed, whether it is the beginning of the same.
	Compared, Identical bool

	between []time.Duration // gaps between pieces
}

// fail sets how the stream ended.
func (s *Sample) fail(o Outcome, format string, args ...any) {
	s.Outcome, s.Message = o, fmt.Sprintf(format, args...)
	if len(s.Message) > maxMessage {
		s.Message = strings.ToValidUTF8(s.Message[:maxMessage], "") + "..."
	}
}

// addGap keeps the longest gaps.
func (s *Sample) addGap(g Gap) {
	if len(s.Gaps) < keptGaps {
		s.Gaps = append(s.Gaps, g)
		return
	}
	least := 0
	for i := range s.Gaps {
		if s.Gaps[i].Length() < s.Gaps[least].Length() {
			least = i
		}
	}
	if g.Length() > s.Gaps[least].Length() {
		s.Gaps[least] = g
	}
}

// stream sends a call and reads its answer to the end, within the timeout.
func (c *client) stream(ctx context.Context, k call, timeout time.Duration, s *Sample) {
	s.Sent = time.Now()
	deadline, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	at := &reading{last: s.Planned}
	at.grow(k.choices)
	err := c.exchange(deadline, k, s, at)
	if k.id != "" {
		err = c.resume(deadline, k, s, at, err)
	}
	s.End = time.Now()
	s.Text = at.text()
	switch {
	case err == nil:
	case ctx.Err() != nil:
		s.fail(Interrupted, "the load was stopped")
	case deadline.Err() != nil:
		s.fail(Timeout, "the stream did not end within %v", timeout)
	case s.Answer.IsZero():
		s.fail(Connect, "%v", plain(err))
	case fault.CodeOf(err) == fault.Invalid:
		s.fail(Malformed, "%v", err)
	default:
		s.fail(Cut, "the stream ended after %d events: %v", s.Pieces, plain(err))
	}
	if s.Outcome.Failed() && s.Pieces > 0 {
		s.addGap(Gap{From: at.last, To: s.End})
	}
	if s.Tokens == 0 {
		s.Tokens = s.Pieces
	}
}

// plain returns the cause of an HTTP error, without the method and the URL.
func plain(err error) error {
	for inner := errors.Unwrap(err); inner != nil; inner = errors.Unwrap(inner) {
		var op *net.OpError
		if errors.As(err, &op) {
			return op
		}
		err = inner
	}
	return err
}

// exchange sends the request and reads the response. It sets the outcome of a response that it could
// read to its end, and returns an error for any other.
func (c *client) exchange(ctx context.Context, k call, s *Sample, at *reading) error {
	r, err := c.request(ctx, http.MethodPost, k.base+k.path, k.body)
	if err != nil {
		return err
	}
	return c.receive(r, k, s, at)
}

// receive sends r and reads the events of its response.
func (c *client) receive(r *http.Request, k call, s *Sample, at *reading) error {
	r.Header.Set("Accept", "text/event-stream")
	if k.tenant != "" {
		r.Header.Set(TenantHeader, k.tenant)
	}
	if k.id != "" {
		r.Header.Set(requestIDHeader, k.id)
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	s.Answer, s.Code = time.Now(), resp.StatusCode
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, maxError)) // what came of the message is enough
		s.refused(resp, text)
		return nil
	}
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if kind != "text/event-stream" {
		return fault.New(fault.Invalid, "want content type text/event-stream, got %q", kind)
	}
	return s.read(newEvents(resp.Body), at)
}

// refused sets the outcome of a response with another status than 200.
func (s *Sample) refused(resp *http.Response, text []byte) {
	s.Outcome = Status
	if resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusServiceUnavailable {
		s.Outcome = Refused
		s.RetryAfter = retryAfter(resp.Header.Get("Retry-After"), time.Now())
	}
	var body struct {
		Error apiError `json:"error"`
	}
	if json.Unmarshal(text, &body) == nil && body.Error.Message != "" {
		s.fail(s.Outcome, "%s", body.Error.Message)
		return
	}
	s.fail(s.Outcome, "%s", bytes.TrimSpace(text))
}

// retryAfter parses the header: seconds or a date.
func retryAfter(text string, now time.Time) time.Duration {
	if seconds, err := strconv.ParseFloat(text, 64); err == nil {
		if seconds > 0 && seconds < 1e6 {
			return time.Duration(seconds * float64(time.Second))
		}
		return 0
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(at.Sub(now), 0)
	}
	return 0
}

// apiError is OpenAI's error object.
type apiError struct {
	Message    string          `json:"message"`
	Type       string          `json:"type"`
	Code       json.RawMessage `json:"code"` // a string, a number or null
	RetryAfter float64         `json:"retry_after"`
}

// chunk is one event of a streamed completion, of either endpoint.
type chunk struct {
	Choices []struct {
		Index  int     `json:"index"`
		Text   string  `json:"text"`
		Finish *string `json:"finish_reason"`
		Delta  struct {
			Content   string     `json:"content"`
			Reasoning string     `json:"reasoning_content"`
			Thinking  string     `json:"reasoning"`
			Calls     []toolCall `json:"tool_calls"`
		} `json:"delta"`
	} `json:"choices"`
	Usage *struct {
		Completion int `json:"completion_tokens"`
	} `json:"usage"`
	Error *apiError `json:"error"`
}
