package plan

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// maxHostsFile is the largest hosts file, in bytes.
const maxHostsFile = 64 << 20

// ParseHosts reads a hosts file:
//
//	{"hosts": [{"id": "a", "memory_bytes": 8000000000, "layer_ms": 0.5, "hop_ms": 0.2}]}
//
// layer_ms is the time of one decode row through one layer. A host may also have bandwidth_mbps, zone, class,
// row_ms and layer_bytes, which Host describes. The error is Invalid and names the field and the host.
func ParseHosts(text []byte) ([]Host, error) {
	if len(text) > maxHostsFile {
		return nil, fault.Field("hosts", "want a file of at most %d bytes, got %d", maxHostsFile, len(text))
	}
	var file struct {
		Hosts *[]json.RawMessage `json:"hosts"`
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&file); err != nil {
		return nil, syntax(err, text)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, fault.Field("hosts", "offset %d: want the end of the file after the object", d.InputOffset())
	}
	if file.Hosts == nil {
		return nil, fault.Field("hosts", "want a list of hosts, got none")
	}
	if n := len(*file.Hosts); n == 0 || n > maxHosts {
		return nil, fault.Field("hosts", "want 1 to %d hosts, got %d", maxHosts, n)
	}
	out := make([]Host, 0, len(*file.Hosts))
	seen := map[string]int{}
	for i, raw := range *file.Hosts {
		h, err := parseHost(i, raw)
		if err != nil {
			return nil, err
		}
		if first, twice := seen[h.ID]; twice {
			return nil, fault.Field(fmt.Sprintf("hosts[%d].id", i), "%q is also the id of hosts[%d]", h.ID, first)
		}
		seen[h.ID] = i
		out = append(out, h)
	}
	return out, nil
}

// syntax returns the error for text that is no JSON, or has a value of another type.
func syntax(err error, text []byte) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return fault.Field("hosts", "offset %d: %v", syntax.Offset, err)
	case errors.As(err, &kind):
		return fault.Field("hosts", "offset %d: want an object with a list of hosts, got %s", kind.Offset, kind.Value)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fault.Field("hosts", "offset %d: the file ends too early", len(text))
	}
	return fault.Field("hosts", "%v", err)
}

func parseHost(i int, raw json.RawMessage) (Host, error) {
	at := fmt.Sprintf("hosts[%d]", i)
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil || fields == nil {
		return Host{}, fault.Field(at, "want an object, got %.40s", raw)
	}
	var h Host
	text := map[string]*string{"id": &h.ID, "zone": &h.Zone, "class": &h.Class}
	bytes := map[string]*int64{"memory_bytes": &h.Memory, "layer_bytes": &h.LayerBytes}
	numbers := map[string]*float64{"layer_ms": &h.LayerMS, "row_ms": &h.RowMS, "hop_ms": &h.HopMS,
		"bandwidth_mbps": &h.Mbps}
	// The id comes first, so that the other errors can name the host.
	if id, given := fields["id"]; given {
		if err := json.Unmarshal(id, &h.ID); err != nil || h.ID == "" {
			return h, fault.Field(at+".id", "want a name, got %.40s", id)
		}
	}
	for _, name := range []string{"id", "memory_bytes", "layer_ms", "hop_ms"} {
		if _, given := fields[name]; !given {
			return h, fault.Field(at+"."+name, "host %q: the field is missing", h.ID)
		}
	}
	names := make([]string, 0, len(fields))
	for name := range fields {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		value := fields[name]
		switch {
		case text[name] != nil:
			if err := json.Unmarshal(value, text[name]); err != nil {
				return h, fault.Field(at+"."+name, "host %q: want a text, got %.40s", h.ID, value)
			}
		case bytes[name] != nil:
			n, ok := wholeNumber(value)
			if !ok {
				return h, fault.Field(at+"."+name, "host %q: want a whole number of bytes, got %.40s", h.ID, value)
			}
			*bytes[name] = n
		case numbers[name] != nil:
			v, err := strconv.ParseFloat(string(value), 64)
			if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
				return h, fault.Field(at+"."+name, "host %q: want a number, got %.40s", h.ID, value)
			}
			*numbers[name] = v
		default:
			return h, fault.Field(at, "host %q: there is no field %s", h.ID, clip(name))
		}
	}
	return h, h.check(at)
}

// wholeNumber reads a number such as 8000000000 or 8e9.
func wholeNumber(text json.RawMessage) (int64, bool) {
	if n, err := strconv.ParseInt(string(text), 10, 64); err == nil {
		return n, true
	}
	v, err := strconv.ParseFloat(string(text), 64)
	if err != nil || v != math.Trunc(v) || math.Abs(v) > 1<<53 {
		return 0, false
	}
	return int64(v), true
}

// clip shortens a name from a file for an error.
func clip(name string) string {
	const most = 40
	if len(name) > most {
		name = name[:most] + "..."
	}
	return strconv.QuoteToASCII(name)
}
