// Command tokenids encodes texts with formats/tokenizer, for interop/tokenizer_ids.py:
// each line of the standard input is a JSON array of a tokenizer.json and texts; each
// line of the output is {"ids": one list per text, null where the text was refused,
// "errors": the reasons}, or {"error": why the tokenizer was refused}.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"

	"github.com/nf4conv/nf4conv/formats/tokenizer"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "tokenids:", err)
		os.Exit(1)
	}
}

type answer struct {
	Error  string   `json:"error,omitempty"`
	IDs    [][]int  `json:"ids,omitempty"`
	Errors []string `json:"errors,omitempty"`
}

func run() error {
	in := json.NewDecoder(bufio.NewReader(os.Stdin))
	out := bufio.NewWriter(os.Stdout)
	for in.More() {
		var file json.RawMessage
		var texts []string
		if err := in.Decode(&[]any{&file, &texts}); err != nil {
			return err
		}
		if err := json.NewEncoder(out).Encode(encode(file, texts)); err != nil {
			return err
		}
	}
	return out.Flush()
}

func encode(file []byte, texts []string) answer {
	t, err := tokenizer.Parse(file)
	if err != nil {
		return answer{Error: err.Error()}
	}
	var a answer
	for _, text := range texts {
		ids, err := t.Encode(text, true)
		if err != nil {
			ids = nil
			a.Errors = append(a.Errors, err.Error())
		} else if ids == nil {
			ids = []int{}
		}
		a.IDs = append(a.IDs, ids)
	}
	return a
}
