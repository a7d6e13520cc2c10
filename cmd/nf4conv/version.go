package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"runtime"
	"runtime/debug"

	"github.com/urfave/cli/v2"

	"github.com/nf4conv/nf4conv/convert"
	"github.com/nf4conv/nf4conv/internal/treehash"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/nf4"
)

// version is set by the linker in releases.
var version = ""

// thisTool identifies this build.
func thisTool() convert.Tool {
	t := convert.Tool{Name: "nf4conv", Version: version}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return t
	}
	if t.Version == "" {
		t.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			t.Revision = s.Value
		}
	}
	return t
}

// versionDoc is what `version --json` prints.
type versionDoc struct {
	Schema    string            `json:"schema"`
	Version   string            `json:"version"`
	Revision  string            `json:"revision"`
	Go        string            `json:"go"`
	OS        string            `json:"os"`
	Arch      string            `json:"arch"`
	Tier      string            `json:"tier"`
	Codebooks map[string]string `json:"codebooks"`
}

func versionVerb() verb {
	return verb{
		name: "version", usage: "print the version and what this build uses", args: "", maxArgs: 0,
		example: "nf4conv version --json", codes: "0 success, 2 wrong usage",
		run: func(_ context.Context, a *app, g *global, _ *cli.Context) error {
			t := thisTool()
			doc := versionDoc{
				Schema: "nf4conv.version/1", Version: t.Version, Revision: t.Revision, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH,
				Tier: kernels.Tier(), Codebooks: map[string]string{"nf4": codebookID(nf4.NF4), "fp4": codebookID(nf4.FP4)},
			}
			if g.json {
				return a.result(&doc)
			}
			return a.print(fmt.Sprintf("nf4conv %s\nrevision   %s\nbuilt with %s for %s/%s\nkernels    %s\ncode books nf4 %.16s, fp4 %.16s\n",
				doc.Version, orNone(doc.Revision), doc.Go, doc.OS, doc.Arch, doc.Tier, doc.Codebooks["nf4"], doc.Codebooks["fp4"]))
		},
	}
}

// codebookID is the digest of the 16 levels as the manifest has it.
func codebookID(t nf4.Type) string {
	var b []byte
	for _, v := range t.Codebook().Levels {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
	}
	return treehash.Sum(b).String()
}

func orNone(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}
