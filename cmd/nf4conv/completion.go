package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/nf4conv/nf4conv/internal/fault"
)

func completionVerb() verb {
	return verb{
		name: "completion", usage: "print a completion script for a shell", args: "bash|zsh|fish|powershell", minArgs: 1, maxArgs: 1,
		example: "source <(nf4conv completion bash)", codes: "0 success, 2 wrong usage",
		run: func(_ context.Context, a *app, _ *global, c *cli.Context) error {
			text, err := completion(c.Args().First())
			if err != nil {
				return err
			}
			return a.text(text)
		},
	}
}

// completion writes the script from the verbs themselves, so that it is never behind.
func completion(shell string) (string, error) {
	var names []string
	flags := map[string][]string{}
	for _, v := range verbsWithoutCompletion() {
		names = append(names, v.name)
		for n := range flagKinds(v.shown()) {
			if len(n) > 1 {
				flags[v.name] = append(flags[v.name], "--"+n)
			}
		}
		slices.Sort(flags[v.name])
	}
	names = append(names, "completion", "help")
	var b strings.Builder
	switch shell {
	case "bash", "zsh":
		if shell == "zsh" {
			b.WriteString("autoload -U +X bashcompinit && bashcompinit\n")
		}
		b.WriteString("_nf4conv() {\n  local cur=${COMP_WORDS[COMP_CWORD]} verb=${COMP_WORDS[1]} words=\n  if [ \"$COMP_CWORD\" -eq 1 ]; then words=\"" + strings.Join(names, " ") + "\"\n  else case $verb in\n")
		for _, n := range names {
			fmt.Fprintf(&b, "    %s) words=%q ;;\n", n, strings.Join(flags[n], " "))
		}
		b.WriteString("  esac; fi\n  case $cur in -*) ;; *) [ \"$COMP_CWORD\" -gt 1 ] && { COMPREPLY=($(compgen -f -- \"$cur\")); return; } ;; esac\n" +
			"  COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n}\ncomplete -o filenames -F _nf4conv nf4conv\n")
	case "fish":
		fmt.Fprintf(&b, "complete -c nf4conv -n __fish_use_subcommand -f -a %q\n", strings.Join(names, " "))
		for _, n := range names {
			for _, f := range flags[n] {
				fmt.Fprintf(&b, "complete -c nf4conv -n '__fish_seen_subcommand_from %s' -l %s\n", n, f[2:])
			}
		}
	case "powershell":
		b.WriteString("Register-ArgumentCompleter -Native -CommandName nf4conv -ScriptBlock {\n  param($word, $ast, $pos)\n  $verb = $ast.CommandElements[1]\n  $words = @{\n")
		for _, n := range names {
			fmt.Fprintf(&b, "    '%s' = '%s'\n", n, strings.Join(flags[n], " "))
		}
		fmt.Fprintf(&b, "  }\n  $list = if ($ast.CommandElements.Count -le 2) { '%s' } else { $words[\"$verb\"] }\n  $list -split ' ' | Where-Object { $_ -like \"$word*\" }\n}\n", strings.Join(names, " "))
	default:
		return "", fault.Usagef("completion: no script for %q; expected bash, zsh, fish or powershell", shell)
	}
	return b.String(), nil
}

// verbsWithoutCompletion breaks the circle between the verb and the list it prints.
func verbsWithoutCompletion() []verb {
	return []verb{quantizeVerb(), dequantizeVerb(), mergeVerb(), extractVerb(), combineVerb(), verifyVerb(), inspectVerb(), diffVerb(), devicesVerb(), benchVerb(), versionVerb()}
}
