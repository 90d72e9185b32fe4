# Sourced by the launchers: --help prints the comment at the top of the script that sources this file.

for word; do
    case $word in
    --) break ;;
    -h | --help)
        sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[1]}"
        exit 0
        ;;
    esac
done
