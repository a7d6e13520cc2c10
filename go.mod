module github.com/nf4conv/nf4conv

go 1.26
