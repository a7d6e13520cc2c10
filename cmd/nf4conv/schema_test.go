package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/nf4conv/nf4conv/adapters"
	"github.com/nf4conv/nf4conv/compare"
	"github.com/nf4conv/nf4conv/convert"
	"github.com/nf4conv/nf4conv/inspect"
	"github.com/nf4conv/nf4conv/internal/treehash"
	"github.com/nf4conv/nf4conv/verify"
)

var update = flag.Bool("update", false, "rewrite docs/schema from the Go types")

const schemaDir = "../../docs/schema"

// documents are the types of everything printed with --json, by the name of their
// schema: docs/schema/NAME.json.
var documents = map[string]any{
	"plan": convert.Plan{}, "run": runDoc{}, "inspect": inspect.Report{}, "diff": compare.Result{}, "devices": devicesDoc{}, "bench": benchDoc{},
	"version": versionDoc{}, "text": textDoc{}, "error": errorDoc{}, "manifest": convert.Manifest{}, "verify": verify.Result{}, "extract": adapters.Extraction{}, "combine": adapters.Combination{},
}

// The schemas say what the Go types say, comments included: a field that is added,
// renamed or removed shows here.
func TestSchemasAreUpToDate(t *testing.T) {
	docs := fieldDocs(t, ".", "../../convert", "../../inspect", "../../compare", "../../verify", "../../bench", "../../adapters")
	for name, doc := range documents {
		g := generator{docs: docs, defs: map[string]any{}}
		schema := g.object(reflect.TypeOf(doc))
		schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
		schema["title"] = "nf4conv " + name
		schema["properties"].(map[string]any)["schema"] = map[string]any{"const": "nf4conv." + name + "/1"}
		schema["$defs"] = g.defs
		var want bytes.Buffer
		enc := json.NewEncoder(&want)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		if err := enc.Encode(schema); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(schemaDir, name+".json")
		if *update {
			if err := os.WriteFile(path, want.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want.Bytes()) {
			t.Errorf("%s is not what the types say (%v); remake it with: go test ./cmd/nf4conv -run Schemas -update", path, err)
		}
	}
}

// generator turns types into schemas.
type generator struct {
	docs map[string]string // "package.Type.Field" -> comment
	defs map[string]any
}

func (g *generator) schema(t reflect.Type) map[string]any {
	switch t {
	case reflect.TypeFor[treehash.Digest]():
		return map[string]any{"type": "string", "pattern": "^[0-9a-f]{64}$"}
	case reflect.TypeFor[verify.Number]():
		return map[string]any{"type": []string{"number", "null"}}
	case reflect.TypeFor[json.RawMessage]():
		return map[string]any{}
	}
	switch t.Kind() {
	case reflect.Bool:
		return map[string]any{"type": "boolean"}
	case reflect.Int, reflect.Int64, reflect.Uint64:
		return map[string]any{"type": "integer"}
	case reflect.Float64:
		return map[string]any{"type": "number"}
	case reflect.String:
		return map[string]any{"type": "string"}
	case reflect.Slice:
		return map[string]any{"type": "array", "items": g.schema(t.Elem())}
	case reflect.Map:
		return map[string]any{"type": "object", "additionalProperties": g.schema(t.Elem())}
	case reflect.Pointer:
		return g.schema(t.Elem())
	case reflect.Interface: // the options of a verb
		return map[string]any{"anyOf": []any{g.schema(reflect.TypeFor[convert.QuantizeOptions]()), g.schema(reflect.TypeFor[convert.DequantizeOptions]()), g.schema(reflect.TypeFor[convert.MergeOptions]())}}
	case reflect.Struct:
		if _, done := g.defs[t.Name()]; !done {
			g.defs[t.Name()] = nil // breaks cycles
			g.defs[t.Name()] = g.object(t)
		}
		return map[string]any{"$ref": "#/$defs/" + t.Name()}
	}
	panic("no schema for " + t.String())
}

func (g *generator) object(t reflect.Type) map[string]any {
	properties, required := map[string]any{}, []string{}
	for i := range t.NumField() {
		f := t.Field(i)
		name, rest, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" || name == "-" || !f.IsExported() {
			continue
		}
		s := g.schema(f.Type)
		if doc := g.docs[path.Base(t.PkgPath())+"."+t.Name()+"."+f.Name]; doc != "" {
			s["description"] = doc
		}
		properties[name] = s
		if rest != "omitempty" {
			required = append(required, name)
		}
	}
	out := map[string]any{"type": "object", "properties": properties, "required": required, "additionalProperties": false}
	if doc := g.docs[path.Base(t.PkgPath())+"."+t.Name()]; doc != "" {
		out["description"] = doc
	}
	return out
}

// fieldDocs are the comments of types and their fields in some packages.
func fieldDocs(t *testing.T, dirs ...string) map[string]string {
	t.Helper()
	docs := map[string]string{}
	text := func(groups ...*ast.CommentGroup) string {
		for _, g := range groups {
			if s := strings.Join(strings.Fields(g.Text()), " "); s != "" {
				return s
			}
		}
		return ""
	}
	for _, dir := range dirs {
		abs, err := filepath.Abs(dir)
		if err != nil {
			t.Fatal(err)
		}
		pkg := filepath.Base(abs) + "."
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range f.Decls {
				decl, ok := d.(*ast.GenDecl)
				if !ok {
					continue
				}
				for _, s := range decl.Specs {
					ts, ok := s.(*ast.TypeSpec)
					if !ok {
						continue
					}
					docs[pkg+ts.Name.Name] = text(ts.Doc, decl.Doc)
					st, ok := ts.Type.(*ast.StructType)
					if !ok {
						continue
					}
					for _, field := range st.Fields.List {
						for _, n := range field.Names {
							docs[pkg+ts.Name.Name+"."+n.Name] = text(field.Doc, field.Comment)
						}
					}
				}
			}
		}
	}
	return docs
}

// validate holds a document against the schema that it names itself.
func validate(t *testing.T, doc []byte) (name string) {
	t.Helper()
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(doc))
	if err != nil {
		t.Fatalf("not one JSON document: %v\n%s", err, doc)
	}
	m, _ := v.(map[string]any)
	id, _ := m["schema"].(string)
	name = strings.TrimSuffix(strings.TrimPrefix(id, "nf4conv."), "/1")
	s, err := jsonschema.NewCompiler().Compile(filepath.Join(schemaDir, name+".json"))
	if err != nil {
		t.Fatalf("schema %q: %v", id, err)
	}
	if err := s.Validate(v); err != nil {
		t.Errorf("%#v", err)
	}
	return name
}
