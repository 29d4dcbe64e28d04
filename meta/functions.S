/* The functions' source, as bytes of the program: what it needs from Redis travels with it. */
	.section .rodata
	.global silt_functions_begin
	.global silt_functions_end
silt_functions_begin:
	.incbin "meta/functions.lua"
	.incbin "meta/functions_sent.lua"
	.incbin "meta/functions_fold.lua"
	.incbin "meta/functions_deleted.lua"
	.incbin "meta/functions_truncate.lua"
	.incbin "meta/functions_xattr.lua"
	.incbin "meta/functions_packs.lua"
	.incbin "meta/functions_compact.lua"
	.incbin "meta/functions_ops.lua"
	.incbin "meta/functions_data.lua"
	.incbin "meta/functions_lock.lua"
	.incbin "meta/functions_session.lua"
	.incbin "meta/functions_scan.lua"
	.incbin "meta/functions_tx.lua"
silt_functions_end:
	.byte 0
	.section .note.GNU-stack,"",%progbits
