"""What a run says about itself: records, the console, files, throughput. Numbers in, text and files out."""
