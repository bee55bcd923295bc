module finetune.dev/onenode/pause

go 1.25.0
