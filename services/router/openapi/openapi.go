// Package openapi describes the HTTP APIs of the router as an OpenAPI 3.1 document, which it serves at
// /openapi.json. The document is made from the table of routes: paths and methods from the patterns, and the fields
// of bodies from the types that the handlers decode, so that it cannot differ from what is served. It says nothing
// about the meaning of fields; docs/api.md and the packages of the APIs do.
package openapi

import (
	"cmp"
	"encoding/json"
	"log/slog"
	"net/http"
	"reflect"
	"regexp"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

type object = map[string]any

// Path is where the document is served.
const Path = "/openapi.json"

// Routes returns the API that serves the document of the given APIs and of itself.
func Routes(apis []httpapi.API, fail func(http.ResponseWriter, error), log *slog.Logger) httpapi.API {
	self := httpapi.API{Name: "openapi", Fail: fail, Log: log, Routes: []httpapi.Route{
		{Method: http.MethodGet, Path: Path, Summary: "Describe all HTTP APIs as an OpenAPI document."},
	}}
	text, err := json.Marshal(Document(append(apis[:len(apis):len(apis)], self)))
	self.Routes[0].Handle = func(w http.ResponseWriter, _ *http.Request) {
		if err != nil {
			fail(w, fault.Wrap(fault.Internal, err, "write the OpenAPI document as JSON"))
			return
		}
		if err := httpapi.WriteJSON(w, httpapi.WriteTimeout, http.StatusOK, json.RawMessage(text)); err != nil &&
			log != nil {
			log.Debug("write answer", "error", err)
		}
	}
	return self
}

// Document returns the document of the APIs.
func Document(apis []httpapi.API) map[string]any {
	paths := object{}
	for _, api := range apis {
		for _, r := range api.Routes {
			path, names := template(r.Path)
			item, _ := paths[path].(object)
			if item == nil {
				item = object{}
				paths[path] = item
			}
			item[strings.ToLower(r.Method)] = operation(api.Name, r, names)
		}
	}
	return object{
		"openapi": "3.1.0",
		"info":    object{"title": "Lamina", "version": "1", "description": "The HTTP APIs of a router of Lamina."},
		"paths":   paths,
		"components": object{"securitySchemes": object{
			"key": object{"type": "http", "scheme": "bearer", "description": "An API key, if the server has keys."},
		}},
		"security": []any{object{}, object{"key": []any{}}},
	}
}

// template returns a pattern of net/http as a path of OpenAPI, and the names of its parameters.
func template(pattern string) (path string, names []string) {
	path = regexp.MustCompile(`\{(\w+)(\.\.\.)?\}`).ReplaceAllStringFunc(pattern, func(p string) string {
		name := strings.Trim(p, "{.}")
		names = append(names, name)
		return "{" + name + "}"
	})
	return path, names
}

func operation(api string, r httpapi.Route, names []string) object {
	id := strings.ToLower(r.Method) + regexp.MustCompile(`\W+`).ReplaceAllString(r.Path, "_")
	whole := object{"application/json": object{"schema": object{"type": "object"}}}
	if r.Stream != "" {
		whole[r.Stream] = object{"schema": object{"type": "string"}}
	}
	failed := object{"description": "The request is refused or has failed; errors have the shape of the API.",
		"content": object{"application/json": object{"schema": object{"type": "object"}}}}
	done := object{"description": "The answer.", "content": whole}
	out := object{
		"operationId": strings.TrimSuffix(id, "_"), "summary": r.Summary, "tags": []string{api},
		"responses": object{"200": done, "default": failed},
	}
	if r.Method == http.MethodDelete {
		out["responses"].(object)["204"] = object{"description": "Done."}
	}
	var parameters []any
	for _, name := range names {
		parameters = append(parameters,
			object{"name": name, "in": "path", "required": true, "schema": object{"type": "string"}})
	}
	if parameters != nil {
		out["parameters"] = parameters
	}
	if r.Body != nil {
		out["requestBody"] = object{"required": true, "content": object{
			cmp.Or(r.BodyType, "application/json"): object{"schema": schema(reflect.TypeOf(r.Body), 0)},
		}}
	}
	return out
}

// maxDepth bounds the nesting of described types.
const maxDepth = 8

// schema returns the JSON Schema of what encoding/json decodes into a type. Types that decode themselves may be
// anything.
func schema(t reflect.Type, depth int) object {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == reflect.TypeFor[json.RawMessage]() ||
		reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]()) ||
		depth > maxDepth {
		return object{}
	}
	switch t.Kind() {
	case reflect.String:
		return object{"type": "string"}
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Float32, reflect.Float64:
		return object{"type": "number"}
	case reflect.Int, reflect.Int32, reflect.Int64, reflect.Uint32:
		return object{"type": "integer"}
	case reflect.Slice:
		return object{"type": "array", "items": schema(t.Elem(), depth+1)}
	case reflect.Map:
		return object{"type": "object", "additionalProperties": schema(t.Elem(), depth+1)}
	case reflect.Struct:
		properties := object{}
		fields(t, properties, depth)
		return object{"type": "object", "properties": properties}
	}
	return object{}
}

// fields adds the fields of a struct, and those of the structs that it embeds.
func fields(t reflect.Type, properties object, depth int) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-":
		case f.Anonymous && name == "" && f.Type.Kind() == reflect.Struct:
			fields(f.Type, properties, depth)
		case name != "":
			properties[name] = schema(f.Type, depth+1)
		}
	}
}
