package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/fetchguard"
	"github.com/lamina-mesh/lamina/pkg/toolloop"
)

func searchTool() Tool {
	return Tool{Name: KindSearch, Kind: KindSearch,
		Description: "Searches the web. Returns numbered sources; cite them in the answer by their numbers, like [1].",
		Parameters: json.RawMessage(`{"type":"object","properties":{"query":{"type":"string","maxLength":200,"description":` +
			`"What to search for, in a few words."}},"required":["query"],"additionalProperties":false}`)}
}

func pageTool() Tool {
	return Tool{Name: KindPage, Kind: KindPage,
		Description: "Reads the text of a web page whose address is known from the user or from a search. " +
			"Returns a numbered source; cite it in the answer by its number, like [1].",
		Parameters: json.RawMessage(`{"type":"object","properties":{"url":{"type":"string","maxLength":2000,"description":` +
			`"The address of the page."}},"required":["url"],"additionalProperties":false}`)}
}

// Call calls a tool. Whatever goes wrong is a failed result that the model reads, unless ctx has ended: then it is an
// error. before are the sources of earlier results, whose addresses may be read.
func (s *Set) Call(
	ctx context.Context, t *Tool, arguments string, before []toolloop.Source,
) (toolloop.Result, error) {
	calling, cancel := context.WithTimeout(ctx, s.box.c.CallTime)
	defer cancel()
	out, err := s.call(calling, t, arguments, before)
	switch {
	case ctx.Err() != nil:
		return toolloop.Result{}, fault.Wrap(fault.CodeOf(ctx.Err()), ctx.Err(), "call tool %s", t.Name)
	case calling.Err() != nil && err != nil:
		return toolloop.Result{Text: "it took longer than " + s.box.c.CallTime.String(), Failed: true}, nil
	case err != nil:
		return toolloop.Result{Text: s.box.public(ctx, t.Name, err).Error(), Failed: true}, nil
	}
	return out, nil
}

func (s *Set) call(
	ctx context.Context, t *Tool, arguments string, before []toolloop.Source,
) (out toolloop.Result, err error) {
	defer func() { // parsers read what strangers have written, and calls run in goroutines of their own
		if r := recover(); r != nil {
			err = fault.Wrap(fault.Internal, fmt.Errorf("panic: %v", r), "call tool %s: it has a defect", t.Name)
		}
	}()
	arguments = cmp.Or(arguments, "{}")
	if t.Kind == KindMCP {
		if !json.Valid([]byte(arguments)) {
			return out, fault.Field("arguments", "want a JSON object")
		}
		out.Text, out.Failed, err = s.box.c.Servers.Call(ctx, t.Server, t.Remote, json.RawMessage(arguments))
		return out, err
	}
	var given struct {
		Query string `json:"query"`
		URL   string `json:"url"`
	}
	if err := json.Unmarshal([]byte(arguments), &given); err != nil {
		return out, fault.Field("arguments", "want a JSON object with strings: %v", err)
	}
	if t.Kind == KindSearch {
		found, _, err := s.box.c.Search.Do(ctx, given.Query, s.box.c.Results)
		if err != nil {
			return out, err
		}
		if len(found) == 0 {
			out.Text = "Nothing was found."
		}
		for _, f := range found {
			out.Sources = append(out.Sources, toolloop.Source{URL: f.URL, Title: f.Title, Text: f.Text})
		}
		return out, nil
	}
	u, err := fetchguard.ParseURL(given.URL)
	if err != nil {
		return out, err
	}
	known := func(b toolloop.Source) bool { return same(b.URL, u.String()) }
	if !s.box.c.AnyPage && !slices.ContainsFunc(before, known) && !s.mentioned(u.String()) {
		return out, fault.New(fault.PermissionDenied, "read %s: neither the user nor a result has mentioned this address",
			u.Redacted())
	}
	page, err := s.box.c.Pages.Read(ctx, u.String())
	if err != nil {
		return out, err
	}
	if page.Partial {
		page.Text += "\n(the page is longer)"
	}
	out.Sources = []toolloop.Source{{URL: page.URL, Title: page.Title, Text: page.Text}}
	return out, nil
}
